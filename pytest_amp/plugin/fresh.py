"""Ask a test again in fresh processes, with the options of this run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pytest_amp.experiment import processes
from pytest_amp.progress import Progress
from pytest_amp.results.report import AmpReport
from pytest_amp.settings.resolved import Settings

# An xdist worker has the controller's options under this key.
CARGO = "amp_options"
_MAIN = (
    "import sys; sys.path[:] = {path!r}; from pytest_amp.plugin.alone import main; sys.exit(main())"
)
# What switches off plugins that would run it elsewhere, again, or watched, by their names.
_WITHOUT = {
    "xdist": ("-n", "0"),
    "rerunfailures": ("--reruns", "0"),
    "_cov": ("--no-cov",),
}
_ITSELF = ("--amp-override", "confirm=off", "--amp-override", "processes=1")


def is_wanted(settings: Settings) -> bool:
    """Return whether fresh processes may be asked about a test."""
    return settings.confirms != "off" or settings.processes > 1


def confirmed(
    item: pytest.Item, report: AmpReport, settings: Settings, progress: Progress
) -> AmpReport:
    """Return the report with what fresh processes say of its timing gates."""
    command = _command(item)

    def again(what: str) -> AmpReport:
        return processes.run(command, progress, what, report.duration_s)

    return processes.confirmed(report, settings, again)


def options_of(config: pytest.Config) -> list[str]:
    """Return the command line of this run without the tests that it names."""
    carried: Any = getattr(config, "workerinput", {}).get(CARGO)
    if carried is not None:
        return [str(word) for word in carried]
    named = list(config.known_args_namespace.file_or_dir)
    return list(_without(map(str, config.invocation_params.args), named))


def _without(words: Iterator[str], named: list[str]) -> Iterator[str]:
    """Yield the words, each of the named ones left out once."""
    left = list(named)
    for word in words:
        if word in left:
            left.remove(word)
        else:
            yield word


def _command(item: pytest.Item) -> processes.Command:
    config = item.config
    switched_off = [
        word
        for name, words in _WITHOUT.items()
        if config.pluginmanager.hasplugin(name)
        for word in words
    ]
    _, separator, within = item.nodeid.partition("::")
    where = [f"--rootdir={config.rootpath}"]
    if config.inipath is not None:
        where += ["-c", str(config.inipath)]
    arguments = [
        sys.executable,
        "-c",
        _MAIN.format(path=sys.path),
        *options_of(config),
        *switched_off,
        *where,
        *_ITSELF,
        f"{item.path}{separator}{within}",
    ]
    return processes.Command(arguments, config.invocation_params.dir, item.nodeid, {})
