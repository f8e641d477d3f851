"""Ask the installed torch what it can do on a device."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import torch

from pytest_amp.lab.machine.device import Device, choose, how_many
from pytest_amp.settings.precision import (
    EMULATED,
    NATIVE,
    Abilities,
    EffectivePrecision,
    effective,
    requested_recipe,
)

# By the kind of scales, the compute capability from which on a GPU multiplies in float8.
_FLOAT8_FROM = {"tensorwise": (8, 9), "rowwise": (9, 0)}
_TF32_FROM = (8, 0)
_NO_TORCHAO = "float8 needs torchao, which is not installed (pip install 'pytest-amp[fp8]')"


def effective_precision(
    requested: object, device: str | torch.device | None = None
) -> EffectivePrecision:
    """Tell what will really run where a precision is asked for, in any of the usual spellings.

    Args:
        requested: None, the name of a recipe, ``"32"``, ``"32-true"``, ``"16"``, ``"16-mixed"``,
            ``"16-true"``, ``"bf16"``, ``"bf16-mixed"``, ``"bf16-true"``, Accelerate's ``"no"``, a
            torch dtype, or a `Recipe`.
        device: the device, such as ``"cuda:1"``; the one that ``--amp-device=auto`` chooses if it
            is None. It need not be there: then torch's own answer for it is given.

    Returns:
        The recipe that runs, and the reason if that is not just what was asked for.

    Raises:
        ValueError: no precision is called so.
        RuntimeError: torch does not know such a device.
    """
    recipe = requested_recipe(requested)
    return effective(recipe, abilities(choose("auto").torch if device is None else device))


def abilities(device: str | torch.device) -> Abilities:
    """Return what torch can do on a device, whether or not the device is there."""
    torchs = torch.device(device)
    kind, capability = torchs.type, _capability(torchs)
    is_there = how_many(kind) > 0
    float8 = {
        scales: _NO_TORCHAO
        if find_spec("torchao") is None
        else NATIVE
        if capability is not None and capability >= least
        else EMULATED
        for scales, least in _FLOAT8_FROM.items()
    }
    return Abilities(
        name=_named(torchs) if is_there else f"a {kind} device that is not there",
        refuses={
            name: refused for name in ("float16", "bfloat16") if (refused := _refused(kind, name))
        },
        tf32=capability is not None and capability >= _TF32_FROM,
        float8=float8,
    )


def _named(device: torch.device) -> str:
    return "a CPU" if device.type == "cpu" else Device(device).name()


def _capability(device: torch.device) -> tuple[int, int] | None:
    """Return an NVIDIA GPU's compute capability; None for every other device."""
    if device.type != "cuda" or torch.version.hip is not None or not how_many("cuda"):
        return None
    return torch.cuda.get_device_capability(device)


def _refused(kind: str, dtype: str) -> str | None:
    """Return why torch leaves autocast off in that dtype; None if it does not."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            region = torch.autocast(kind, dtype=getattr(torch, dtype))
        except RuntimeError as error:
            return _quoted(str(error))
    return None if region._enabled else _quoted(str(told[0].message) if told else "")


def _quoted(message: str) -> str:
    first, *_ = message.replace("\n", " ").split(". ")
    said = f" ({first.strip().rstrip('.')})" if first else ""
    return f"torch leaves autocast off here{said}"
