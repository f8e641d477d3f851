"""Read a page of HTML, to see what is markup in it and what is text."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cmarkgfm


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


def of_markdown(text: str) -> Read:
    """What GitHub's own parser makes of Markdown."""
    unsafe = cmarkgfm.cmark.Options.CMARK_OPT_UNSAFE
    return Read(cmarkgfm.github_flavored_markdown_to_html(text, options=unsafe))


def results_of(page: Path) -> dict[str, Any]:
    """What a page of pytest-html holds of each test, by its id."""
    blob = re.search(r'data-jsonblob="([^"]*)"', page.read_text("utf-8"))
    assert blob is not None
    tests: dict[str, Any] = json.loads(html.unescape(blob[1]))["tests"]
    return tests


def our_extras(tests: dict[str, Any], name: str = "") -> Iterator[str]:
    """Yield the pieces of ours at the tests whose id has this in it."""
    for nodeid, results in tests.items():
        for result in results:
            for extra in result["extras"]:
                if name in nodeid and "Mixed precision" in extra["content"]:
                    yield extra["content"]
