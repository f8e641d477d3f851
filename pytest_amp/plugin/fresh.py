"""Ask a test again in fresh processes, with the options of this run."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from pytest_amp.experiment import processes
from pytest_amp.plugin.alone import CACHE
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
    "cacheprovider": ("-o", CACHE),  # what failed last stays as it was
}
_ITSELF = ("--amp-override", "confirm=off", "--amp-override", "processes=1")


def is_wanted(settings: Settings) -> bool:
    """Return whether fresh processes may be asked about a test."""
    return settings.confirms != "off" or settings.processes > 1


def again(item: pytest.Item, report: AmpReport, progress: Progress) -> processes.Again:
    """Return what runs a test in a fresh process and brings back its report."""
    command = _command(item)
    return lambda what: processes.run(command, progress, what, report.duration_s)


def options_of(config: pytest.Config) -> list[str]:
    """Return the command line of this run, the tests that it names included."""
    carried: Any = getattr(config, "workerinput", {}).get(CARGO)
    return [str(word) for word in (carried or config.invocation_params.args)]


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
