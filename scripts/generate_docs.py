"""Write what the documentation shows of the code: ``python scripts/generate_docs.py``.

The tests hold each of these to what the code says.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # where it is run as a script

from pytest_amp.rules import explain  # noqa: E402
from pytest_amp.settings import table as settings  # noqa: E402
from pytest_amp.storage import columns  # noqa: E402

README = ROOT / "README.md"
SETTINGS = re.compile(r"(?<=<!-- settings -->\n).*?(?=<!-- /settings -->)", re.DOTALL)


def settings_table() -> str:
    """Each setting, its default and its meaning, as a table in Markdown."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for entry in settings.TABLE:
        name = f"`{entry.name}`" if entry.marker else f"`{entry.flag}`"
        rows.append(f"| {name} | {entry.default_shown} | {entry.help} |")
    return "\n".join(rows) + "\n"


def pages() -> dict[Path, str]:
    """The text of each file that is generated, or has a part that is."""
    readme = SETTINGS.sub(lambda _: settings_table(), README.read_text("utf-8"))
    return {
        README: readme,
        ROOT / "docs" / "rules.md": explain.page(),
        ROOT / "docs" / "history.md": columns.page(),
    }


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
