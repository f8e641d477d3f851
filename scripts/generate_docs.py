"""Generate the parts of the documentation that follow from the code.

Run ``python scripts/generate_docs.py`` after a change of settings, options, rules or columns. Two
pages are generated as a whole. Others have generated parts between ``<!-- generated: NAME -->`` and
``<!-- /generated -->``. The tests fail if one of them is out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for a run as a script

from pytest_amp.cli.main import COMMANDS  # noqa: E402
from pytest_amp.judge.devices import DEVICES, Gpu  # noqa: E402
from pytest_amp.plugin import options  # noqa: E402
from pytest_amp.render import json as amp_json  # noqa: E402
from pytest_amp.rules import explain  # noqa: E402
from pytest_amp.settings import table as settings  # noqa: E402
from pytest_amp.storage import columns  # noqa: E402

DOCS = ROOT / "docs"
README = ROOT / "README.md"
PART = re.compile(
    r"(<!-- generated: (?P<name>\w+) -->\n).*?(?=<!-- /generated -->)", re.MULTILINE | re.DOTALL
)


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


# -- settings and options --------------------------------------------------------------------------


def settings_table() -> str:
    """Return a table with each setting, its default and its meaning."""
    return table(
        ("setting", "default", "meaning"),
        (
            (
                f"`{entry.name}`" if entry.marker else f"`{entry.flag}`",
                entry.default_shown,
                entry.help,
            )
            for entry in settings.TABLE
        ),
    )


def pytest_options() -> dict[str, dict[str, Any]]:
    """Return the arguments with which the plugin adds each option to pytest's command line."""
    added: dict[str, dict[str, Any]] = {}

    def addoption(flag: str, **how: Any) -> None:
        added[flag] = how

    group = SimpleNamespace(addoption=addoption)
    parser: Any = SimpleNamespace(getgroup=lambda *_: group, addini=lambda *_, **__: None)
    options.add_options(parser)
    return added


def options_table() -> str:
    """Return a table with each option of pytest that is ours, and its meaning."""

    def written(flag: str, how: Mapping[str, Any]) -> str:
        value = f"={how['metavar']}" if "metavar" in how else ""
        return f"`{flag}[{value}]`" if how.get("nargs") == "?" else f"`{flag}{value}`"

    return table(
        ("option", "meaning"),
        (
            (written(flag, how), how["help"].replace("%%", "%"))
            for flag, how in pytest_options().items()
        ),
    )


# -- the command line ------------------------------------------------------------------------------


def subcommands() -> dict[str, argparse.ArgumentParser]:
    """Return each subcommand's parser."""
    parsers = {}
    for command in COMMANDS:
        parsers[command.name] = parser = argparse.ArgumentParser(f"pytest-amp {command.name}")
        command.arguments(parser)
    return parsers


def subcommands_tables() -> str:
    """Return a section for each subcommand, with a table of its arguments."""
    parsers = subcommands()
    sections = []
    for command in COMMANDS:
        sections.append(f"### `pytest-amp {command.name}`\n\n{_sentence(command.help)}\n")
        actions = [action for action in parsers[command.name]._actions if action.dest != "help"]
        if actions:
            rows = ((_argument(action), _meaning(action)) for action in actions)
            sections.append(table(("argument", "meaning"), rows))
    return "\n".join(sections)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _argument(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest)
    if not action.option_strings:
        many = action.nargs in ("*", "?")
        name = name if action.metavar else name.upper()
        return f"`[{name}{' ...' if action.nargs == '*' else ''}]`" if many else f"`{name}`"
    name = name if action.metavar else name.upper()
    value = "" if action.nargs == 0 else f" {name}"
    return ", ".join(f"`{flag}{value}`" for flag in action.option_strings)


def _meaning(action: argparse.Action) -> str:
    return str(action.help) % {"default": f"`{action.default}`", "prog": "pytest-amp"}


# -- the JSON report -------------------------------------------------------------------------------


def json_tables() -> str:
    """Return tables of the report's keys, one for each object of its JSON Schema."""
    schema = amp_json.schema()
    objects = {"report": schema, **{n: d for n, d in schema["$defs"].items() if "properties" in d}}
    return "\n".join(_object(name, each, schema) for name, each in objects.items())


def _object(name: str, of: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    def row(key: str, value: Mapping[str, Any]) -> tuple[str, ...]:
        optional = "" if key in of.get("required", ()) else "May be absent. "
        return f"`{key}`", _kind(value, schema), optional + value.get("description", "")

    text = f"{of['description']}\n\n" if name != "report" and "description" in of else ""
    rows = (row(key, value) for key, value in of["properties"].items())
    return f"### {name}\n\n{text}" + table(("key", "value", "meaning"), rows)


def _kind(of: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Return the kind of a value in words."""
    if "$ref" in of:
        name = of["$ref"].rpartition("/")[2]
        target = schema["$defs"][name]
        return f"[{name}](#{name})" if "properties" in target else _kind(target, schema)
    if "anyOf" in of:
        kinds = [_kind(each, schema) for each in of["anyOf"]]
        return " or ".join(sorted(kinds, key="null".__eq__))
    if "enum" in of or "const" in of:
        values = of.get("enum", [of.get("const")])
        return ", ".join(f"`{value}`" for value in values)
    kind = of.get("type", "any value")
    if kind == "array":
        return f"list of {_several(_kind(of['items'], schema))}"
    if kind == "object" and "additionalProperties" in of:
        return f"object of {_several(_kind(of['additionalProperties'], schema))}"
    if kind == "object" and "properties" in of:
        kinds = {_kind(each, schema) for each in of["properties"].values()}
        return f"object of {' and '.join(map(_several, sorted(kinds)))}"
    kinds = [kind] if isinstance(kind, str) else kind
    return " or ".join(kinds)


def _several(kind: str) -> str:
    """Return the plural of a kind: ``number or null`` becomes ``numbers or null``."""
    words = {"number": "numbers", "string": "strings", "integer": "integers", "null": "null"}
    return " or ".join(words.get(word, word) for word in kind.split(" or "))


# -- the GPUs of the forecast ----------------------------------------------------------------------


def gpus_table() -> str:
    """Return a table of what the GPUs reach at most."""

    def row(name: str, gpu: Gpu) -> tuple[str, ...]:
        figures = (gpu.float32, gpu.tf32, gpu.half, gpu.float8, gpu.memory)
        shown = ["-" if figure is None else f"{figure:g}" for figure in figures]
        shown[2] += "" if gpu.bfloat16 else " (no bfloat16)"
        return name, *shown

    head = ("GPU", "float32", "TF32", "float16, bfloat16", "float8", "memory, GB/s")
    return table(head, (row(name, gpu) for name, gpu in DEVICES.items()))


# -- all of it -------------------------------------------------------------------------------------

PARTS: Mapping[str, Callable[[], str]] = {
    "settings": settings_table,
    "options": options_table,
    "subcommands": subcommands_tables,
    "json": json_tables,
    "gpus": gpus_table,
}


def pages() -> dict[Path, str]:
    """Return the text of each page that is generated, or that has generated parts."""
    found = {
        DOCS / "reference" / "rules.md": explain.page(),
        DOCS / "reference" / "history.md": columns.page(),
    }
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text("utf-8")
        if path not in found and PART.search(text):
            found[path] = PART.sub(lambda part: f"{part[1]}\n{PARTS[part['name']]()}\n", text)
    return found


def main() -> None:
    """Write the pages."""
    for path, text in pages().items():
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
