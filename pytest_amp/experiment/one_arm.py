"""Find out of an exception whether only one arm raises it, by running both arms once more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from pytest_amp.errors import SaidInFull, unless_our_bug
from pytest_amp.lab.arm import ArmName
from pytest_amp.lab.machine.device import world_size
from pytest_amp.lab.scaling.scaler import raised_by_scaler
from pytest_amp.lab.watch.raising import LastRaised, custom_function, is_an_assertion
from pytest_amp.lab.watch.refused import LedToRefusal
from pytest_amp.lab.watch.source import library_below, location_of
from pytest_amp.lab.workbench import Workbench
from pytest_amp.rules.base import RaisedAlone
from pytest_amp.rules.scaler import NOTHING_SCALED, NOTHING_TO_CHECK

__tracebackhide__ = unless_our_bug

# Packages whose exceptions are a test's outcome.
_OUTCOMES = ("_pytest", "unittest")


@contextmanager
def explained(bench: Workbench, name: ArmName) -> Iterator[None]:
    """Let an exception of an arm pass, and tell `bench.progress` what there is to say about it."""
    try:
        yield
    except Exception as error:
        if _may_be_of_one_arm(bench, error):
            notes: list[str] = [*getattr(error, "__notes__", ())]
            bench.progress.raised_alone = _alone(bench, name, error)
            vars(error)["__notes__"] = notes  # without those of the reruns, if it is raised there
        elif raised_by_scaler(error) and world_size() == 1:
            bench.progress.led_to_it = _led_to(bench, name, error)
        raise


def _led_to(bench: Workbench, name: ArmName, error: Exception) -> str | None:
    """Return the user's line that a GradScaler's exception is about; None if it is the call's."""
    begins = str(error).startswith
    if not begins((NOTHING_SCALED, NOTHING_TO_CHECK)):
        return None
    watch = LedToRefusal()
    _raised(bench, name, bench.progress.step or 0, watch.watching())
    return watch.unscaled_at if begins(NOTHING_SCALED) else watch.emptied_at


def _may_be_of_one_arm(bench: Workbench, error: Exception) -> bool:
    return not (
        isinstance(error, SaidInFull)
        or type(error).__module__.partition(".")[0] in _OUTCOMES
        or is_an_assertion(error)
        or raised_by_scaler(error)
        or bench.device.is_oom(error)
        or world_size() > 1  # the other ranks would not take part
    )


def _alone(bench: Workbench, name: ArmName, error: Exception) -> RaisedAlone | None:
    """Return what only this arm raises; None if the other raises too, or this one not again.

    Both are built once more, and run as many steps as it took.
    """
    steps, kind, watch = bench.progress.step or 0, type(error), LastRaised()
    if _raised(bench, "fp32" if name == "amp" else "amp", steps) is not None:
        return None
    # Under the watch compiled code runs eagerly, and may not raise.
    if _raised(bench, name, steps, watch.watching()) is not kind and (
        _raised(bench, name, steps) is not kind
    ):
        return None
    met = watch.of(error)
    location, library = location_of(error), library_below(error)
    return RaisedAlone(
        arm=name,
        kind=kind.__name__,
        message=str(error),
        location=location,
        library=None if library == location else library,
        op=met.op,
        dtypes=met.dtypes,
        function=custom_function(error),
    )


def _raised(
    bench: Workbench,
    name: ArmName,
    steps: int,
    watch: AbstractContextManager[object] | None = None,
) -> type[BaseException] | None:
    """Build an arm, run its steps, and return the type of what was raised."""
    try:
        with watch or nullcontext(), bench.built(name) as resident, resident.active():
            for _ in range(steps):
                resident.step()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - pytest's outcomes are none of Exception's
        return type(error)
    return None
