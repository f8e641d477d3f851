"""List everything global that a training step may touch, one row each.

A value is written only if it differs, since some writes have side effects: setting the matmul
precision also sets the backends' precisions.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch.nn.modules import module as nn_module
from torch.optim import optimizer as optim_module
from torch.utils import _device


@dataclass(frozen=True)
class Global:
    """A process-wide value.

    `read` may raise an error if switches of the old and the new API have been mixed.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None]


def _attribute(name: str, owner: Any, attribute: str) -> Iterator[Global]:
    try:
        there = hasattr(type(owner), attribute) or hasattr(owner, attribute)
    except RuntimeError:  # it exists, but can't be read while old and new switches are mixed
        there = True
    if there:
        yield Global(
            name, lambda: getattr(owner, attribute), lambda value: setattr(owner, attribute, value)
        )


def _precision() -> Iterator[Global]:
    """Yield the precision switches, old ones first.

    Writing an old switch also changes new ones, but not the other way round.
    """
    backends: Any = torch.backends
    yield Global(
        "float32_matmul_precision",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    )
    matmul, cudnn = backends.cuda.matmul, backends.cudnn
    yield from _attribute("cuda.matmul.allow_tf32", matmul, "allow_tf32")
    yield from _attribute("cudnn.allow_tf32", cudnn, "allow_tf32")
    for name in (
        "allow_fp16_reduced_precision_reduction",
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_accumulation",
    ):
        yield from _attribute(f"cuda.matmul.{name}", matmul, name)
    for owner, name in (
        (backends, "fp32_precision"),
        (matmul, "cuda.matmul.fp32_precision"),
        (getattr(cudnn, "conv", None), "cudnn.conv.fp32_precision"),
        (getattr(cudnn, "rnn", None), "cudnn.rnn.fp32_precision"),
        (getattr(backends.mkldnn, "matmul", None), "mkldnn.matmul.fp32_precision"),
        (getattr(backends.mkldnn, "conv", None), "mkldnn.conv.fp32_precision"),
        (getattr(backends.mkldnn, "rnn", None), "mkldnn.rnn.fp32_precision"),
    ):
        try:
            if owner is not None and hasattr(owner, "fp32_precision"):
                yield from _attribute(name, owner, "fp32_precision")
        except (RuntimeError, AssertionError):
            continue


def set_tf32(*, on: bool) -> None:
    """Choose whether float32 operands are multiplied in TF32, in products and in convolutions."""
    if hasattr(torch.backends, "fp32_precision"):
        torch.backends.fp32_precision = "none"  # what is chosen for single backends inherits it
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


def is_tf32_on() -> bool:
    """Return whether matrix products of float32 run in less than float32 in this process."""
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return torch.get_float32_matmul_precision() != "highest"
    # To ask the older switch raises where somebody has used the newer ones.
    owners = backends, backends.cuda.matmul, backends.mkldnn.matmul
    return any(owner.fp32_precision in ("tf32", "bf16") for owner in owners)


def _autocast() -> Iterator[Global]:
    for kind in ("cpu", "cuda", "xpu", "mps"):
        try:
            torch.get_autocast_dtype(kind)
        except RuntimeError:
            continue
        yield _autocast_on(kind)
    yield Global(
        "autocast.cache", torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled
    )
    yield Global("autocast.nesting", _nesting, _set_nesting)


def _autocast_on(kind: str) -> Global:
    def write(value: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(kind, value[0])
        torch.set_autocast_dtype(kind, value[1])

    return Global(
        f"autocast.{kind}",
        lambda: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)),
        write,
    )


def _nesting() -> int:
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())


def _set_nesting(depth: int) -> None:
    """Unwind what a leaked ``autocast.__enter__`` left, and drop its cached casts."""
    while _nesting() > depth:
        torch.autocast_decrement_nesting()
    while _nesting() < depth:
        torch.autocast_increment_nesting()
    torch.clear_autocast_cache()


def _function_modes() -> tuple[Any, ...]:
    """Read all modes in force, including ``torch.set_default_device`` and ``with device:``."""
    depth = torch._C._len_torch_function_stack()
    return (
        dict(vars(torch._GLOBAL_DEVICE_CONTEXT)),  # some versions ask if it has any
        _device.CURRENT_DEVICE,
        *(torch._C._get_function_stack_at(index) for index in range(depth)),
    )


def _set_function_modes(value: tuple[Any, ...]) -> None:
    context, current, *modes = value
    while torch._C._len_torch_function_stack():
        torch._C._pop_torch_function_stack()
    for mode in modes:
        torch._C._push_on_torch_function_stack(mode)
    vars(torch._GLOBAL_DEVICE_CONTEXT).clear()
    vars(torch._GLOBAL_DEVICE_CONTEXT).update(context)
    _device.CURRENT_DEVICE = current


def _saved_tensor_hooks() -> Iterator[Global]:
    """Yield the stack of hooks, unless this torch is too old to let it be read."""
    autograd: Any = torch._C._autograd
    if not hasattr(autograd, "_top_saved_tensors_default_hooks"):
        return

    def pop() -> Iterator[Any]:
        while (top := autograd._top_saved_tensors_default_hooks(True)) is not None:
            autograd._pop_saved_tensors_default_hooks()
            yield top

    def read() -> tuple[Any, ...]:
        stack = tuple(pop())[::-1]
        push(stack)
        return stack

    def push(stack: tuple[Any, ...]) -> None:
        for pack, unpack in stack:
            autograd._push_saved_tensors_default_hooks(pack, unpack)

    def write(stack: tuple[Any, ...]) -> None:
        list(pop())
        push(stack)

    yield Global("saved_tensors_hooks", read, write)


_inference_guards: list[Any] = []  # kept, since a guard that is freed restores the former mode


def _set_inference_mode(enabled: bool) -> None:
    _inference_guards.append(torch._C._InferenceMode(enabled))
    _inference_guards[-1].__enter__()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _set_environment(value: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(value):
        del os.environ[name]
    os.environ.update(value)


# The signals that launchers and trainers handle. Not every platform has all of them.
_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM")
    if hasattr(signal, name)
]


def _signals() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in _SIGNALS}


def _set_signals(handlers: Mapping[int, Any]) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in handlers.items():
        if handler is not None:
            signal.signal(number, handler)


def _attention() -> Iterator[Global]:
    """Yield which kernels ``scaled_dot_product_attention`` may use."""
    cuda: Any = torch.backends.cuda
    for kernel in ("flash", "mem_efficient", "math", "cudnn"):
        if hasattr(cuda, f"{kernel}_sdp_enabled"):
            read = getattr(cuda, f"{kernel}_sdp_enabled")
            yield Global(f"attention.{kernel}", read, getattr(cuda, f"enable_{kernel}_sdp"))
    if hasattr(cuda, "allow_fp16_bf16_reduction_math_sdp"):
        read = cuda.fp16_bf16_reduction_math_sdp_allowed
        yield Global("attention.reduction", read, cuda.allow_fp16_bf16_reduction_math_sdp)


def _libraries() -> Iterator[Global]:
    """Yield which library computes where there are several.

    Called without an argument, each of these functions returns the present choice.
    """
    for name in ("preferred_blas_library", "preferred_linalg_library", "preferred_rocm_fa_library"):
        choose = getattr(torch.backends.cuda, name, None)
        if choose is not None:
            yield Global(name, choose, choose)


def _queues(kind: str) -> Iterator[Global]:
    """Yield the current device, each device's current stream, and whether waits are reported.

    The value is None if no such device has been used yet, since asking would initialize it.
    """
    module: Any = getattr(torch, kind, None)
    if not (hasattr(module, "is_initialized") and hasattr(module, "set_stream")):
        return

    def when_used(read: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: read() if module.is_initialized() else None

    def streams() -> tuple[Any, ...]:
        return tuple(module.current_stream(number) for number in range(module.device_count()))

    def set_streams(found: tuple[Any, ...] | None) -> None:
        for stream in found or ():
            module.set_stream(stream)  # also makes its device the current one

    def set_device(number: int | None) -> None:
        if number is not None:
            module.set_device(number)

    yield Global(f"{kind}.streams", when_used(streams), set_streams)
    yield Global(f"{kind}.device", when_used(module.current_device), set_device)
    if hasattr(module, "get_sync_debug_mode"):

        def set_sync_debug_mode(mode: int | None) -> None:
            if mode is not None:
                module.set_sync_debug_mode(mode)

        read = when_used(module.get_sync_debug_mode)
        yield Global(f"{kind}.sync_debug_mode", read, set_sync_debug_mode)


def _hooks() -> Iterator[Global]:
    yield from _attribute("module.is_full_backward", nn_module, "_global_is_full_backward_hook")
    for owner in (nn_module, optim_module):
        for name, registry in vars(owner).items():
            if name.startswith("_global_") and isinstance(registry, dict):
                yield _dictionary(f"{owner.__name__}.{name}", owner.__name__, attrgetter(name))


def _accelerate() -> Iterator[Global]:
    """Yield what all of Accelerate's objects share, such as the one precision for all of them."""
    for name in ("PartialState", "AcceleratorState", "GradientState"):
        shared = attrgetter(f"{name}._shared_state")
        yield _dictionary(f"accelerate.{name}", "accelerate.state", shared)


def _graph_trees() -> Global:
    """Return compiled code's CUDA graphs, by device: running one frees what another returned."""
    return _dictionary(
        "cudagraph_trees",
        "torch._inductor.cudagraph_trees",
        lambda module: module.get_obj(module.local, "tree_manager_containers"),
    )


def _dictionary(name: str, module: str, find: Callable[[Any], dict[Any, Any]]) -> Global:
    """Return a dictionary in a module as a global; it is empty until the module is imported."""

    def there() -> dict[Any, Any]:
        imported = sys.modules.get(module)
        return {} if imported is None else find(imported)

    def write(value: Mapping[Any, Any]) -> None:
        dictionary = there()
        dictionary.clear()
        dictionary.update(value)

    return Global(name, lambda: dict(there()), write)


def table() -> tuple[Global, ...]:
    """Return all rows, in the order in which they are to be written."""
    cudnn: Any = torch.backends.cudnn
    return (
        *_precision(),
        *_attribute("cudnn.benchmark", cudnn, "benchmark"),
        *_attribute("cudnn.deterministic", cudnn, "deterministic"),
        *_attribute("cudnn.enabled", cudnn, "enabled"),
        Global("default_dtype", torch.get_default_dtype, torch.set_default_dtype),
        Global("function_modes", _function_modes, _set_function_modes),
        Global(
            "deterministic_algorithms",
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            _set_deterministic,
        ),
        Global("inference_mode", torch.is_inference_mode_enabled, _set_inference_mode),
        Global("grad_enabled", torch.is_grad_enabled, torch._C._set_grad_enabled),
        Global(
            "anomaly",
            lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
            lambda value: torch.set_anomaly_enabled(*value),
        ),
        Global("num_threads", torch.get_num_threads, torch.set_num_threads),
        *_autocast(),
        *_attention(),
        *_libraries(),
        *_queues("cuda"),
        *_queues("xpu"),
        *_hooks(),
        *_accelerate(),
        _graph_trees(),
        *_saved_tensor_hooks(),
        Global("environ", lambda: dict(os.environ), _set_environment),
        Global("signals", _signals, _set_signals),
        Global("gc", gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
    )
