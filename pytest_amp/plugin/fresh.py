"""Ask a test again in fresh processes, with the options of this run."""

from __future__ import annotations

import sys

import pytest

from pytest_amp.experiment import processes
from pytest_amp.plugin import collection
from pytest_amp.plugin.alone import CACHE
from pytest_amp.plugin.options import command_line
from pytest_amp.progress import Progress
from pytest_amp.results.report import AmpReport

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


def again(item: pytest.Item, report: AmpReport, progress: Progress) -> processes.Again:
    """Return what runs a test in a fresh process and brings back its report."""
    command = _command(item)
    return lambda what: processes.run(command, progress, what, report.duration_s)


def _command(item: pytest.Item) -> processes.Command:
    config = item.config
    switched_off = [
        word
        for name, words in _WITHOUT.items()
        if config.pluginmanager.hasplugin(name)
        for word in words
    ]
    nodeid = collection.id_of(item)
    _, separator, within = nodeid.partition("::")
    where = [f"--rootdir={config.rootpath}"]
    if config.inipath is not None:
        where += ["-c", str(config.inipath)]
    arguments = [
        sys.executable,
        "-c",
        _MAIN.format(path=sys.path),
        *command_line(config),
        *switched_off,
        *where,
        *_ITSELF,
        f"{item.path}{separator}{within}",
    ]
    return processes.Command(arguments, config.invocation_params.dir, nodeid, {})
