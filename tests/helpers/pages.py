"""Read a page of HTML, to see what is markup in it and what is text."""

from __future__ import annotations

from html.parser import HTMLParser


class Read(HTMLParser):
    """A page's tags with the names of their attributes, and its text.

    A `wbr` only allows a line to break, and is left out.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "wbr":
            self.tags.append(f"<{tag}{''.join(f' {name}' for name, _ in attrs)}>")

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.text += data
