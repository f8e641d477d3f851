"""What of torch's private parts we rely on: each is held here to what it must do.

torch may change these in any release. If one of the tests fails with a newer torch, its name says
what changed, and its note for which torch our code was written; `git grep` finds the code. The last
tests hold this list to be complete.
"""

from __future__ import annotations

import ast
import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import pytest_amp
from pytest_amp.errors import add_note

HELD: dict[str, str] = {}
"""By the name of each private part: the torch that our code was written for."""


def holds(*names: str, written_for: str = "2.13") -> Callable[..., object]:
    """Mark a test as what these private parts must do."""
    HELD.update(dict.fromkeys(names, written_for))

    def marked(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*arguments: object, **named: object) -> None:
            try:
                test(*arguments, **named)
            except Exception as error:
                told = f"our code was written for {', '.join(names)} as in torch {written_for}"
                add_note(error, f"{told}; this is torch {torch.__version__}")
                raise

        return run

    return marked


def graph() -> tuple[torch.Tensor, torch.Tensor]:
    leaf = torch.ones(2, requires_grad=True)
    return leaf, (leaf * 2).sum()


# Where a backward pass is


@holds("_current_graph_task_id", "_current_autograd_node")
def test_a_backward_pass_tells_that_it_runs_and_at_which_node() -> None:
    leaf, loss = graph()
    seen = []

    class Looking(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            node = torch._C._current_autograd_node()
            seen.append((torch._C._current_graph_task_id(), node and node.name()))
            return func(*args, **kwargs or {})

    with Looking():
        leaf.detach().mul(3)
        loss.backward()
    assert seen[0] == (-1, None)
    assert all(task >= 0 for task, _ in seen[-2:])
    assert seen[-1][1] in ("MulBackward0", "torch::autograd::AccumulateGrad")
    assert any(name == "MulBackward0" for _, name in seen)


@holds("_get_sequence_nr", "_sequence_nr")
def test_each_node_has_the_number_that_was_next_when_it_was_made() -> None:
    leaf = torch.ones(2, requires_grad=True)
    before = torch._C._autograd._get_sequence_nr()
    made = leaf * 2
    assert made.grad_fn._sequence_nr() == before
    assert torch._C._autograd._get_sequence_nr() == before + 1
    with torch.no_grad():
        leaf * 2
    assert torch._C._autograd._get_sequence_nr() == before + 1


@holds("_forward_cls", "_input_metadata")
def test_a_node_tells_of_its_custom_function_and_of_its_gradients() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(_, value):
            return value * 2

        @staticmethod
        def backward(_, gradient):
            return gradient * 2

    made = Twice.apply(torch.ones(2, requires_grad=True).half())
    assert made.grad_fn._forward_cls is Twice
    assert [each.dtype for each in made.grad_fn._input_metadata] == [torch.float16]


@holds("_engine_run_backward")
def test_every_backward_pass_goes_through_one_function(monkeypatch) -> None:
    runs = []
    original = torch.autograd._engine_run_backward

    def run(*args, **kwargs):
        runs.append(args[0])
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "_engine_run_backward", run)
    graph()[1].backward()
    leaf, loss = graph()
    torch.autograd.grad(loss, leaf)
    assert len(runs) == 2
    assert runs[1][0] is loss


# What is in force in a thread


@holds("_is_any_autocast_enabled")
def test_autocast_of_any_device_is_seen() -> None:
    assert not torch._C._is_any_autocast_enabled()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch._C._is_any_autocast_enabled()


@holds("_enabled", "_cache_enabled")
def test_a_region_of_autocast_tells_if_it_is_on_and_if_it_caches() -> None:
    region = torch.autocast("cpu", torch.bfloat16)
    assert (region._enabled, region._cache_enabled) == (True, True)
    region._cache_enabled = False
    with region:
        assert not torch.is_autocast_cache_enabled()
    assert torch.amp.GradScaler("cpu", enabled=False)._enabled is False


@holds("_set_grad_enabled", "_InferenceMode")
def test_modes_of_a_thread_are_set_without_a_context_manager() -> None:
    torch._C._set_grad_enabled(False)
    try:
        assert not torch.is_grad_enabled()
    finally:
        torch._C._set_grad_enabled(True)
    guard = torch._C._InferenceMode(True)
    with guard:
        assert torch.is_inference_mode_enabled()
    assert not torch.is_inference_mode_enabled()


class Mode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **kwargs or {})


@holds(
    "_len_torch_function_stack", "_get_function_stack_at", "_pop_torch_function_stack",
    "_push_on_torch_function_stack",
)  # fmt: skip
def test_function_modes_are_a_stack_that_can_be_taken_off_and_put_on() -> None:
    mode = Mode()
    depth = torch._C._len_torch_function_stack()
    with mode:
        assert torch._C._len_torch_function_stack() == depth + 1
        assert torch._C._get_function_stack_at(depth) is mode
        assert torch._C._pop_torch_function_stack() is mode
        assert torch._C._len_torch_function_stack() == depth
        torch._C._push_on_torch_function_stack(mode)
    assert torch._C._len_torch_function_stack() == depth


@holds(
    "_python_dispatch.TorchDispatchMode", "_pop_mode", "_push_mode", "_len_torch_dispatch_stack",
    "_get_current_dispatch_mode_stack",
)  # fmt: skip
def test_dispatch_modes_are_a_stack_of_their_thread() -> None:
    from torch.utils import _python_dispatch as dispatch

    class Seeing(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += 1
            return func(*args, **kwargs or {})

    mode = Seeing()
    dispatch._push_mode(mode)
    assert torch._C._len_torch_dispatch_stack() == 1
    assert dispatch._get_current_dispatch_mode_stack() == [mode]
    torch.ones(1) + 1
    thread = threading.Thread(target=lambda: torch.ones(1) + 1)
    thread.start()
    thread.join()
    assert dispatch._pop_mode() is mode
    assert mode.seen == 2
    assert torch._C._len_torch_dispatch_stack() == 0


@holds("_mode_utils.no_dispatch")
def test_what_runs_without_dispatch_is_not_seen() -> None:
    from torch.utils._mode_utils import no_dispatch

    class Refusing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            raise AssertionError("it was seen")

    value = torch.ones(1)
    with Refusing(), no_dispatch():
        assert (value + 1).item() == 2


@holds("_ops", "_higher_order_ops")
def test_the_higher_order_operators_are_listed_where_a_mode_must_be_made_known_to_them() -> None:
    if hasattr(TorchDispatchMode, "supports_higher_order_operators"):
        return  # the list is only read where this is missing, as in torch 2.6
    operators = vars(torch._ops)["_higher_order_ops"]
    assert all(isinstance(each.python_key_table, dict) for each in operators.values())
    assert "flex_attention" in operators


@holds("_C.DisableTorchFunctionSubclass")
def test_subclasses_can_be_seen_as_plain_tensors() -> None:
    class Counting(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            raise AssertionError("it was seen")

    tensor = torch.ones(2).as_subclass(Counting)
    with torch._C.DisableTorchFunctionSubclass():
        assert float((tensor + 1).sum()) == 4


@holds("_GLOBAL_DEVICE_CONTEXT", "_device")
def test_a_default_device_is_kept_in_two_places() -> None:
    from torch.utils import _device

    before, current = dict(vars(torch._GLOBAL_DEVICE_CONTEXT)), _device.CURRENT_DEVICE
    torch.set_default_device("meta")
    try:
        assert vars(torch._GLOBAL_DEVICE_CONTEXT) != before
        assert str(_device.CURRENT_DEVICE) == "meta"
    finally:
        torch.set_default_device(None)
    assert _device.CURRENT_DEVICE is current


@holds(
    "_autograd", "_top_saved_tensors_default_hooks", "_pop_saved_tensors_default_hooks",
    "_push_saved_tensors_default_hooks",
)  # fmt: skip
def test_hooks_on_saved_tensors_are_a_stack() -> None:
    autograd = torch._C._autograd
    if not hasattr(autograd, "_top_saved_tensors_default_hooks"):
        pytest.skip("this torch does not let it be read")

    def pack(tensor):
        return tensor

    assert autograd._top_saved_tensors_default_hooks(True) is None
    autograd._push_saved_tensors_default_hooks(pack, pack)
    assert autograd._top_saved_tensors_default_hooks(True) == (pack, pack)
    autograd._pop_saved_tensors_default_hooks()
    assert autograd._top_saved_tensors_default_hooks(True) is None


# The GradScaler and optimizers


@holds(
    "_scale", "_growth_tracker", "_init_scale", "_init_growth_tracker", "_get_growth_tracker",
    "_per_optimizer_states",
)  # fmt: skip
def test_a_scaler_keeps_its_state_in_tensors_that_update_writes_in_place() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    assert (scaler._scale, scaler._init_scale, scaler._growth_tracker) == (None, 8.0, None)
    assert scaler._init_growth_tracker == scaler._get_growth_tracker() == 0
    scaler._init_scale = 4.0
    leaf, loss = graph()
    optimizer = torch.optim.SGD([leaf])
    scaler.scale(loss * float("inf")).backward()
    tensor, version = scaler._scale, scaler._scale._version
    assert float(tensor) == 4.0
    scaler.step(optimizer)
    found = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values()
    assert [float(each) for each in found] == [1.0]
    scaler.update()
    assert scaler._scale is tensor
    assert scaler._scale._version == version + 1
    assert (float(tensor), int(scaler._growth_tracker)) == (2.0, 0)
    scaler._scale.fill_(16.0)
    assert scaler.get_scale() == 16.0


@holds("_wrapped_by_lr_sched", "_opt_called")
def test_a_scheduler_marks_the_step_that_it_wraps() -> None:
    leaf, loss = graph()
    optimizer = torch.optim.SGD([leaf], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert hasattr(optimizer.step, "_wrapped_by_lr_sched")
    loss.backward()
    optimizer.step()
    assert optimizer._opt_called is True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.step()


@holds("_schedulers")
def test_a_sequence_of_schedules_lists_them() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    parts = [torch.optim.lr_scheduler.StepLR(optimizer, 1) for _ in range(2)]
    whole = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[2])
    assert list(whole._schedulers) == parts


# Modules and compiled code


@holds("_call_impl", "_compiled_call_impl")
def test_a_module_calls_what_was_compiled_in_its_place() -> None:
    model = nn.Linear(2, 2)
    calls = []

    def call(*args, **kwargs):
        calls.append(args)
        return model._call_impl(*args, **kwargs)

    assert model._compiled_call_impl is None
    model._compiled_call_impl = call
    value = torch.ones(1, 2)
    assert torch.equal(model(value), F.linear(value, model.weight, model.bias))
    assert len(calls) == 1


@holds("_orig_mod")
def test_a_compiled_module_holds_the_original_as_its_part() -> None:
    model = nn.Linear(2, 2)
    compiled = torch.compile(model)
    assert compiled._orig_mod is model
    assert "_orig_mod" in compiled._modules


@holds("torch._dynamo", "torch._dynamo.utils")
def test_dynamo_counts_its_graphs_and_forgets_them() -> None:
    import torch._dynamo as dynamo
    from torch._dynamo.utils import counters

    before = counters["stats"]["unique_graphs"]
    compiled = torch.compile(lambda value: value + 1, backend="eager")
    compiled(torch.ones(2))
    assert counters["stats"]["unique_graphs"] == before + 1
    dynamo.reset()
    compiled(torch.ones(2))
    assert counters["stats"]["unique_graphs"] >= 1


@holds("torch._inductor", "torch._inductor.cudagraph_trees", "_set_cached_tensors_enabled")
def test_the_graphs_of_compiled_code_are_kept_by_device() -> None:
    from torch._inductor import cudagraph_trees as trees

    containers = trees.get_obj(trees.local, "tree_manager_containers")
    assert isinstance(containers, dict)
    assert callable(trees.reset_cudagraph_trees)
    torch._C._set_cached_tensors_enabled(True)
    torch._C._set_cached_tensors_enabled(False)


@holds("_global_is_full_backward_hook", "_global_")
def test_hooks_on_all_modules_are_kept_in_dictionaries() -> None:
    from torch.nn.modules import module
    from torch.optim import optimizer

    def hook(*_):
        return None

    assert module._global_is_full_backward_hook is None
    handle = nn.modules.module.register_module_forward_hook(hook)
    assert hook in module._global_forward_hooks.values()
    handle.remove()
    handle = optimizer.register_optimizer_step_pre_hook(hook)
    assert hook in optimizer._global_optimizer_pre_hooks.values()
    handle.remove()


# Tensors, operators and trees


@holds("_cdata", "_indices")
def test_a_tensor_tells_where_its_memory_is() -> None:
    tensor = torch.ones(4)
    assert tensor.untyped_storage()._cdata == tensor[1:].untyped_storage()._cdata
    assert tensor.untyped_storage()._cdata != torch.ones(4).untyped_storage()._cdata
    sparse = torch.eye(2).to_sparse()
    assert sparse._indices().tolist() == [[0, 1], [0, 1]]
    assert sparse._values().tolist() == [1, 1]


@holds("_functorch.is_functorch_wrapped_tensor", "_python_dispatch.is_traceable_wrapper_subclass")
def test_tensors_that_wrap_others_are_known() -> None:
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    wrapped = []
    torch.func.vmap(
        lambda row: (wrapped.append(torch._C._functorch.is_functorch_wrapped_tensor(row)), row)[1]
    )(torch.ones(2, 2))
    assert wrapped == [True]
    plain = torch.ones(2)
    assert not torch._C._functorch.is_functorch_wrapped_tensor(plain)
    assert not is_traceable_wrapper_subclass(plain)


@holds("_VF")
def test_dropout_and_recurrent_layers_are_called_through_one_module(monkeypatch) -> None:
    called = []
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "dropout", "dropout_"):
        original = getattr(torch._VF, name)

        def call(*args, name=name, original=original):
            called.append(name)
            return original(*args)

        monkeypatch.setattr(torch._VF, name, call, raising=False)
    x = torch.ones(2, 1, 2)
    nn.LSTM(2, 2)(x), nn.GRU(2, 2)(x), nn.RNN(2, 2)(x), nn.LSTMCell(2, 2)(x[0])
    F.dropout(x), F.dropout(x.clone(), inplace=True)
    assert called == ["lstm", "gru", "rnn_tanh", "lstm_cell", "dropout", "dropout_"]


def test_an_operator_tells_whether_it_returns_a_view() -> None:
    aten = torch.ops.aten
    assert aten.view.default.is_view
    assert aten.expand.default.is_view
    assert not aten.add.Tensor.is_view
    assert not aten.add_.Tensor.is_view


@holds("_overloadpacket", "_qualified_op_name", "_schema")
def test_an_operator_tells_its_name_and_its_arguments() -> None:
    operator = torch.ops.aten.add_.Tensor
    assert operator._overloadpacket._qualified_op_name == "aten::add_"
    assert operator._schema.is_mutable
    assert not torch.ops.aten.add.Tensor._schema.is_mutable
    names = [argument.name for argument in torch.ops.aten.native_dropout.default._schema.arguments]
    assert names == ["input", "p", "train"]


@holds("_to_copy.default", "_to_copy", "_reshape_alias", "_unsafe_view", "_foreach_")
def test_operators_have_the_names_by_which_they_are_told_apart() -> None:
    seen = []

    class Naming(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **kwargs or {})

    with Naming():
        torch.ones(2).half()
        torch.optim.SGD([torch.ones(2)], lr=0.1, foreach=True)
        torch._foreach_add_([torch.ones(2)], 1.0)
    assert torch.ops.aten._to_copy.default in seen
    assert torch.ops.aten._foreach_add_.Scalar in seen
    assert hasattr(torch.ops.aten, "_reshape_alias")
    assert hasattr(torch.ops.aten, "_unsafe_view")


@holds("_amp_", "_foreach_zero_")
def test_scalers_and_zero_grad_call_functions_of_these_names() -> None:
    called = []

    class Naming(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            called.append(func.__name__)
            return func(*args, **kwargs or {})

    leaf, loss = graph()
    optimizer = torch.optim.SGD([leaf], foreach=True)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss).backward()
    with Naming():
        scaler.unscale_(optimizer)
        optimizer.zero_grad(set_to_none=False)
    assert any(name.startswith("_amp_") for name in called)
    assert "_foreach_zero_" in called


@holds("_c10d_functional")
def test_collectives_that_can_be_traced_are_in_a_namespace_of_their_own() -> None:
    if torch.distributed.is_available():
        assert torch.ops._c10d_functional.all_reduce.default.namespace == "_c10d_functional"


@holds("_pytree")
def test_trees_are_flattened_and_mapped_leaf_by_leaf() -> None:
    from torch.utils import _pytree as pytree

    tree = {"a": [1, (2, None)], "b": 3}
    assert pytree.tree_leaves(tree) == [1, 2, None, 3]
    assert pytree.tree_map(str, tree) == {"a": ["1", ("2", "None")], "b": "3"}
    assert pytree.tree_map_only(int, lambda n: n + 1, tree) == {"a": [2, (3, None)], "b": 4}


# Devices, the profiler, threads


@holds("_lazy_seed_tracker")
def test_a_device_that_was_not_used_keeps_the_seed_that_it_was_given() -> None:
    if torch.cuda.is_initialized():
        pytest.skip("CUDA was used already")
    assert isinstance(vars(torch.cuda._lazy_seed_tracker), dict)


@holds("_cuda_clearCublasWorkspaces")
def test_cublas_can_be_told_to_free_its_workspaces() -> None:
    if torch.backends.cuda.is_built():
        assert callable(torch._C._cuda_clearCublasWorkspaces)


@holds(
    "_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_avx512_fp16_supported",
    "_is_amx_fp16_supported", "_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported",
)  # fmt: skip
def test_the_cpu_tells_what_it_can_in_hardware() -> None:
    probes = [name for name in HELD if name.startswith(("_is_avx512", "_is_amx"))]
    there = [getattr(torch.cpu, name) for name in probes if hasattr(torch.cpu, name)]
    assert there or hasattr(torch.cpu, "get_capabilities")
    assert all(isinstance(probe(), bool) for probe in there)
    for name in ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"):
        assert isinstance(getattr(torch.ops.mkldnn, name)(), bool)


@holds("_sdp_enabled", "_sdp")
def test_each_kernel_of_attention_has_a_switch() -> None:
    cuda = torch.backends.cuda
    for kernel in ("flash", "mem_efficient", "math"):
        before = getattr(cuda, f"{kernel}_sdp_enabled")()
        getattr(cuda, f"enable_{kernel}_sdp")(not before)
        assert getattr(cuda, f"{kernel}_sdp_enabled")() is not before
        getattr(cuda, f"enable_{kernel}_sdp")(before)


@holds(
    "_profiler_enabled", "_prepare_profiler", "_enable_profiler", "_profiler.RecordScope",
)  # fmt: skip
def test_a_profiler_is_started_by_two_functions_of_one_module(monkeypatch) -> None:
    from torch._C._profiler import RecordScope
    from torch.autograd import profiler

    called = []
    for name in ("_prepare_profiler", "_enable_profiler"):
        original = getattr(profiler, name)

        def around(*args, name=name, original=original, **kwargs):
            called.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(profiler, name, around)
    assert not torch._C._autograd._profiler_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler's own, of cycles of events
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
            assert torch._C._autograd._profiler_enabled()
    assert not torch._C._autograd._profiler_enabled()
    assert called[-2:] == ["_prepare_profiler", "_enable_profiler"]
    assert RecordScope.STATIC_RUNTIME_OP in RecordScope.__members__.values()


@holds("_disable_profiler", "_set_is_profiler_enabled")
def test_a_profiler_that_nobody_stops_can_be_stopped() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]).start()
        torch._C._autograd._disable_profiler()
    assert torch.autograd.profiler._is_profiler_enabled
    torch.autograd.profiler._set_is_profiler_enabled(False)
    assert not torch.autograd.profiler._is_profiler_enabled
    assert not torch._C._autograd._profiler_enabled()


# The dispatcher's kernels


@holds("_dispatch_get_registrations_for_dispatch_key")
def test_every_build_has_the_kernels_of_cudas_autocast() -> None:
    names = torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA")
    assert {"aten::mm", "aten::exp", "aten::binary_cross_entropy"} <= set(names)


@holds(
    "_C.DispatchKeySet", "_C.DispatchKey.AutocastCPU", "_ExcludeDispatchKeyGuard", "_destroy",
)  # fmt: skip
def test_a_kernel_of_autocast_is_replaced_and_comes_back() -> None:
    on_cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
    library = torch.library.Library("aten", "IMPL", "AutocastCPU")

    def in_double(left, right):
        with torch._C._ExcludeDispatchKeyGuard(on_cpu):
            return torch.ops.aten.mm(left.double(), right.double())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library.impl("mm", in_double)
    value = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.mm(value, value).dtype is torch.float64
    assert torch.mm(value, value).dtype is torch.float32
    library._destroy()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.mm(value, value).dtype is torch.bfloat16


@holds("_C.DispatchKey.BackendSelect", "_dispatch_keyset_full_after")
def test_a_kernel_below_autograd_is_seen_by_no_mode_and_hands_on() -> None:
    below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)
    library = torch.library.Library("aten", "IMPL", "BackendSelect")
    library.impl(
        "mm", lambda keys, *args: torch.ops.aten.mm.default.redispatch(keys & below, *args) + 1,
        with_keyset=True,
    )  # fmt: skip
    seen = []

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func._schema.name)
            return func(*args, **kwargs or {})

    value = torch.ones(2, 2, requires_grad=True)
    try:
        with Seeing():
            made = torch.mm(value, value)
    finally:
        library._destroy()
    assert seen == ["aten::mm"]
    assert made[0, 0] == 3
    assert made.grad_fn.name() == "MmBackward0"
    assert torch.mm(value, value)[0, 0] == 2


@holds("_make_wrapper_subclass", "_disabled_torch_function_impl")
def test_a_tensor_can_say_that_it_is_on_cuda_where_there_is_none() -> None:
    seen = []

    class StandIn(torch.Tensor):
        __torch_function__ = torch._C._disabled_torch_function_impl

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            seen.append((func._schema.name, (kwargs or {}).get("dtype")))
            raise NotImplementedError

    made = torch.Tensor._make_wrapper_subclass(
        StandIn, (2, 2), dtype=torch.float32, device=torch.device("cuda")
    )
    torch.set_autocast_enabled("cuda", True)
    try:
        with torch.no_grad(), pytest.raises(NotImplementedError):
            torch.ops.aten.mm(made, made)
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert seen == [("aten::_to_copy", torch.float16)]


@holds("_is_view")
def test_a_tensor_tells_if_it_is_a_view() -> None:
    tensor = torch.ones(2)
    assert tensor[:1]._is_view()
    assert not tensor._is_view()


@holds(
    "_softmax", "_log_softmax", "_backward_data", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
)  # fmt: skip
def test_a_cpus_softmax_and_attention_are_operators_of_these_names() -> None:
    for name in ("_softmax", "_log_softmax"):
        arguments = getattr(torch.ops.aten, name).default._schema.arguments
        assert [each.name for each in arguments] == ["self", "dim", "half_to_float"]
        arguments = getattr(torch.ops.aten, f"{name}_backward_data").default._schema.arguments
        names = [each.name for each in arguments]
        assert names == ["grad_output", "output", "dim", "input_dtype"]
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    assert attention.default._schema.name in torch._C._dispatch_get_registrations_for_dispatch_key(
        "CPU"
    )


# The list


NOT_TORCHS = {
    "_replace", "_asdict",  # of named tuples
    "_getframe", "_target", "_thread",  # Python's
    "_pytest", "_ALLOC_FAILED",
    "_like", "_over", "_stands_for",  # the end of a name, and two attributes of ours
    "_shared_state",  # Accelerate's
    "_compiler_ctx",  # Lightning's
}  # fmt: skip


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and bool(name.strip("_"))


def used_in(path: Path) -> Iterator[str]:
    """Yield the private names that a file takes from elsewhere, from their last private part on."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            yield from shortened(chain(node))
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("pytest_amp"):
            for each in node.names:
                yield from shortened([*(node.module or "").split("."), each.name])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            if is_private(text.removeprefix("torch.")) and text.replace(".", "_").isidentifier():
                yield text


def chain(node: ast.expr) -> list[str]:
    """Return the names in ``a.b.c``; what is no name, such as a call, is left out."""
    if isinstance(node, ast.Attribute):
        return [*chain(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else []


def shortened(parts: list[str]) -> Iterator[str]:
    parts = parts[2:] if parts[:1] in (["self"], ["cls"]) else parts
    private = [index for index, part in enumerate(parts) if is_private(part)]
    if private and parts[0] == "torch":
        yield ".".join(parts[private[-1] :])
    else:
        yield from (parts[index] for index in private)


def made_in(path: Path) -> Iterator[str]:
    """Yield the names that a file makes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr if chain(node.value) in (["self"], ["cls"]) else ""


FILES = [
    path
    for room in ("lab", "experiment")
    for path in (Path(pytest_amp.__file__).parent / room).rglob("*.py")
]


def test_a_use_of_a_private_part_is_seen_however_it_is_written(tmp_path) -> None:
    path = tmp_path / "uses.py"
    path.write_text(
        "from torch._made import up\n"
        "torch._C._up()\n"
        "self._ours._theirs\n"
        "scaler._found.item()\n"
        "getattr(scaler, '_asked', None)\n"
        "sys.modules.get('torch._there')\n"
        "vars(torch._inside)['_named']\n"
    )
    expected = {"_made.up", "_up", "_theirs", "_found", "_asked", "torch._there", "_inside"}
    assert set(used_in(path)) == {*expected, "_named"}


def test_everything_private_that_we_use_is_held_here() -> None:
    ours = {name for path in FILES for name in made_in(path)}
    used = {name for path in FILES for name in used_in(path)}
    assert sorted(used - ours - NOT_TORCHS - HELD.keys()) == []


def test_nothing_is_held_that_we_do_not_use() -> None:
    assert sorted(HELD.keys() - {name for path in FILES for name in used_in(path)}) == []
