"""Explain the rules: one text for each code, for the terminal and for docs/rules.md."""

from __future__ import annotations

import textwrap
from importlib import resources
from typing import Final

from pytest_amp.codes import CODES

SECTIONS: Final = (
    "When it speaks", "Why it hurts", "Faulty", "Fix", "When to ignore it", "Reference",
)  # fmt: skip
WIDTH: Final = 80


def text(code: str) -> str:
    """Return a rule's text in Markdown.

    Raises:
        KeyError: no rule has this code.
    """
    if code not in CODES:
        raise KeyError(code)
    return resources.files("pytest_amp.rules").joinpath(f"texts/{code}.md").read_text("utf-8")


def summary(code: str) -> str:
    """Return the first sentence of a rule's text."""
    return text(code).split("\n\n")[1].strip()


def for_terminal(code: str) -> str:
    """Format a rule's text for 80 columns: no marks, code indented, everything else wrapped."""
    name, severity, _ = CODES[code]
    lines = [f"{code} {name} ({severity})", ""]
    in_code = False
    paragraph: list[str] = []

    def end_paragraph() -> None:
        if paragraph:
            whole = " ".join(paragraph)
            lines.extend(
                textwrap.wrap(whole, WIDTH, break_on_hyphens=False, break_long_words=False)
            )
            paragraph.clear()

    for line in text(code).splitlines()[2:]:
        if line.startswith("```"):
            end_paragraph()
            in_code = not in_code
        elif in_code:
            lines.append(f"    {line}".rstrip())
        elif line.startswith("## "):
            end_paragraph()
            lines.append(line.removeprefix("## ").upper())
        elif line:
            paragraph.append(line)
        else:
            end_paragraph()
            lines.append("")
    end_paragraph()
    return "\n".join(lines)


def page() -> str:
    """Return the text of docs/rules.md: a table of all rules, and then each of them."""
    rows = [
        f"| [{code}](#{code.lower()}-{name}) | {name} | {severity} | {summary(code)} |"
        for code, (name, severity, _) in CODES.items()
    ]
    head = (
        "# The rules\n\n"
        "An error fails its test, a warning is shown. `pytest-amp explain AMP203` prints one of "
        "these\ntexts. This page is generated: `python scripts/generate_docs.py` writes it.\n\n"
        "| code | name | level | what is wrong |\n|---|---|---|---|\n"
    )
    bodies = [_deeper(text(code)) for code in CODES]
    return head + "\n".join(rows) + "\n\n" + "\n".join(bodies)


def _deeper(markdown: str) -> str:
    """Move all headings one level down, leaving code blocks alone."""
    lines, in_code = [], False
    for line in markdown.splitlines():
        in_code ^= line.startswith("```")
        lines.append(f"#{line}" if line.startswith("#") and not in_code else line)
    return "\n".join(lines) + "\n"
