"""CPU autocast regions under CUDA's rules."""

from __future__ import annotations

import copy
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from pytest_amp.lab.machine.device import Device
from pytest_amp.lab.policy import cuda_rules
from pytest_amp.lab.watch.memory import peak_memory

HALF, FULL = torch.float16, torch.float32


@pytest.fixture
def rules():
    with cuda_rules():
        yield


@pytest.fixture
def region(rules):
    with torch.autocast("cpu"):
        yield


def half(*shape: int) -> torch.Tensor:
    return torch.rand(shape, dtype=HALF)


def full(*shape: int) -> torch.Tensor:
    return torch.rand(shape)


class Seen(TorchDispatchMode):
    """The operators that run, with the dtypes of the first tensors that go in and come out."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, torch.dtype | None, torch.dtype | None]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        first = made[0] if isinstance(made, tuple) else made
        given = next((each.dtype for each in args if isinstance(each, torch.Tensor)), None)
        name = func._schema.name.removeprefix("aten::")
        self.calls.append((name, given, getattr(first, "dtype", None)))
        return made


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda: full(2, 3) @ full(3, 2), HALF),
        (lambda: F.linear(half(2, 3), full(4, 3), full(4)), HALF),
        (lambda: F.conv2d(full(1, 2, 5, 5), full(3, 2, 3, 3)), HALF),
        (lambda: F.scaled_dot_product_attention(*[full(1, 2, 4, 8)] * 3), HALF),
        (lambda: nn.LSTM(3, 4)(full(2, 1, 3))[0], HALF),
        (lambda: nn.GRU(3, 4)(full(2, 1, 3))[0], HALF),
        (lambda: nn.LSTMCell(3, 4)(full(1, 3))[0], HALF),
        (lambda: F.prelu(full(2, 2), full(1)), HALF),
        (lambda: half(2).exp(), FULL),
        (lambda: half(2) ** 2, FULL),
        (lambda: F.layer_norm(half(2, 3), (3,)), FULL),
        (lambda: F.group_norm(half(2, 4), 2), FULL),
        (lambda: F.mse_loss(half(2), half(2)), FULL),
        (lambda: F.softmax(half(2, 3), -1), FULL),
        (lambda: F.log_softmax(half(2, 3), -1), FULL),
        (lambda: half(2, 3).sum(), FULL),
        (lambda: half(2, 3).sum(0), FULL),
        (lambda: half(2, 3).cumsum(0), FULL),
        (lambda: half(2, 3).prod(), FULL),
        (lambda: half(2, 3).norm(), FULL),
        (lambda: F.pairwise_distance(half(2, 3), half(2, 3)), FULL),
        (lambda: nn.LSTM(3, 4)(full(2, 0, 3))[0], HALF),
        (lambda: nn.LSTM(3, 4).double()(full(2, 1, 3).double())[0], torch.float64),
        (lambda: torch.linalg.vector_norm(half(2, 3)), FULL),
        (lambda: F.interpolate(half(1, 1, 4, 4), scale_factor=2.0), FULL),
        (lambda: torch.addcmul(half(2), full(2), half(2)), FULL),
        (lambda: torch.addcmul(half(2), half(2), half(2)), HALF),
        (lambda: torch.atan2(half(2), half(2)), HALF),
        # What a dtype was asked for, doubles and integers are left alone.
        (lambda: half(2, 3).sum(dtype=HALF), HALF),
        (lambda: F.softmax(half(2, 3), -1, dtype=HALF), HALF),
        (lambda: torch.rand(2, 2, dtype=torch.float64).exp(), torch.float64),
        (lambda: torch.arange(3).sum(), torch.int64),
        # What neither list has runs in the dtype that it gets; a CPU's lists have these.
        (lambda: F.relu(half(2)), HALF),
        (lambda: half(2).mean(), HALF),
        (lambda: F.gelu(half(2)), HALF),
        (lambda: F.avg_pool3d(half(1, 1, 4, 4, 4), 2), HALF),
        (lambda: torch.cat([half(2), full(2)]), FULL),
        (lambda: half(2) + full(2), FULL),
        (lambda: F.batch_norm(half(2, 3), full(3), full(3)), HALF),
    ],
)
def test_the_dtype_of_the_result_is_cudas(region, made, expected) -> None:
    assert made().dtype is expected


def test_what_cuda_refuses_is_refused(region) -> None:
    with pytest.raises(RuntimeError, match="unsafe to autocast"):
        F.binary_cross_entropy(half(3), full(3))


def test_dtypes_that_cuda_does_not_mix_are_an_error(region) -> None:
    with pytest.raises(RuntimeError, match="Unexpected floating ScalarType"):
        torch.atan2(half(2), half(2).bfloat16())


def test_the_dtype_of_a_region_is_its_own(rules) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert (full(2, 2) @ full(2, 2)).dtype is torch.bfloat16
    with torch.autocast("cpu"):
        assert (full(2, 2) @ full(2, 2)).dtype is HALF
        with torch.autocast("cpu", enabled=False):
            assert (full(2, 2) @ full(2, 2)).dtype is FULL
            with torch.autocast("cpu"):
                assert (full(2, 2) @ full(2, 2)).dtype is HALF
        assert (full(2, 2) @ full(2, 2)).dtype is HALF
    assert (full(2, 2) @ full(2, 2)).dtype is FULL


def test_a_region_for_cuda_is_the_cpus(rules) -> None:
    assert not torch.is_autocast_enabled("cuda")
    with torch.autocast("cuda"):
        assert torch.is_autocast_enabled("cuda")
        assert torch.is_autocast_enabled()
        assert (full(2, 2) @ full(2, 2)).dtype is HALF
        with torch.autocast("cuda", enabled=False):
            assert not torch.is_autocast_enabled("cpu")
        with torch.autocast(device_type="cuda", dtype=torch.bfloat16):
            assert torch.get_autocast_dtype("cuda") is torch.bfloat16
            assert (full(2, 2) @ full(2, 2)).dtype is torch.bfloat16
    assert not torch.is_autocast_enabled("cuda")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_names_of_regions_and_scalers_are_the_cpus(rules) -> None:
    with torch.cuda.amp.autocast():
        assert (full(2, 2) @ full(2, 2)).dtype is HALF
    for made in (torch.cuda.amp.GradScaler(), torch.amp.GradScaler(), torch.amp.GradScaler("cuda")):
        assert made.is_enabled()
        assert made.scale(full(1)).device.type == "cpu"
    assert not torch.amp.GradScaler("cuda", enabled=False).is_enabled()


before = torch.autocast("cuda", enabled=False)


def test_a_region_that_was_made_before_stays_off(rules) -> None:
    big = torch.full((1, 4), 300.0)
    with torch.autocast("cuda"):
        with before:
            assert (big @ big.T).item() == 360_000
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cuda")


def test_a_region_that_was_made_inside_is_cudas_again_afterwards() -> None:
    with cuda_rules():
        made = torch.autocast("cuda")
        with made:
            assert (full(2, 2) @ full(2, 2)).dtype is HALF
    with made:
        assert (full(2, 2) @ full(2, 2)).dtype is FULL


def test_a_region_is_made_without_a_warning(rules) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.autocast("cuda")
        with torch.autocast("cuda", dtype=FULL):
            assert (half(2, 2) @ half(2, 2)).dtype is FULL


def test_a_device_type_that_torch_refuses_is_refused(rules) -> None:
    with pytest.raises(ValueError, match="device_type"):
        torch.autocast(torch.device("cuda"))


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_region_can_be_compiled(rules, kind) -> None:
    torch._dynamo.reset()

    @torch.compile(backend="eager")
    def product(left, right):
        with torch.autocast(kind):
            return left @ right

    assert product(full(2, 2), full(2, 2)).shape == (2, 2)


def test_custom_functions_for_cuda_are_cast_and_run_without_autocast(rules) -> None:
    seen = []

    class Product(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cuda", cast_inputs=FULL)
        def forward(context, left, right):
            context.save_for_backward(left, right)
            seen.append((left.dtype, (left @ right).dtype))
            return left @ right

        @staticmethod
        @torch.amp.custom_bwd(device_type="cuda")
        def backward(context, gradient):
            left, right = context.saved_tensors
            seen.append((gradient.dtype, torch.is_autocast_enabled("cpu")))
            return gradient @ right.T, left.T @ gradient

    weight = half(2, 2).requires_grad_()
    with torch.autocast("cuda"):
        made = Product.apply(weight, full(2, 2))
    made.sum().backward()
    assert seen == [(FULL, FULL), (FULL, False)]


def test_a_custom_function_that_casts_nothing_goes_back_as_it_came(rules) -> None:
    seen = []

    class Product(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cuda")
        def forward(context, left, right):
            context.save_for_backward(left, right)
            return left @ right

        @staticmethod
        @torch.amp.custom_bwd(device_type="cuda")
        def backward(context, gradient):
            left, right = context.saved_tensors
            seen.append((gradient @ right.T).dtype)
            return (gradient @ right.T).float(), (left.T @ gradient).float()

    with torch.autocast("cuda"):
        made = Product.apply(full(2, 2).requires_grad_(), full(2, 2))
    made.float().sum().backward()
    assert seen == [HALF]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_repeats_the_forward_pass_by_the_same_rules(rules, use_reentrant) -> None:
    layer = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    value = full(2, 4).requires_grad_()
    with torch.autocast("cuda"):
        made = checkpoint(layer, value, use_reentrant=use_reentrant)
    assert made.dtype is HALF
    with Seen() as seen:
        made.sum().backward()
    assert ("addmm", HALF, HALF) in seen.calls
    assert ("native_layer_norm", FULL, FULL) in seen.calls


def test_a_weight_is_cast_once_and_its_uses_add_up_in_the_reduced_dtype(rules) -> None:
    weight = torch.ones(2, 2, requires_grad=True)
    with Seen() as seen, torch.autocast("cpu"):
        made = full(1, 2) @ weight + full(1, 2) @ weight
    assert seen.calls.count(("_to_copy", FULL, HALF)) == 1 + 2  # the weight, and the two inputs
    with Seen() as seen:
        made.sum().backward()
    assert ("add", HALF, HALF) in seen.calls
    assert weight.grad.dtype is FULL


def test_without_the_cache_a_weight_is_cast_at_every_use(rules) -> None:
    weight = torch.ones(2, 2, requires_grad=True)
    with Seen() as seen, torch.autocast("cpu", cache_enabled=False):
        full(1, 2) @ weight + full(1, 2) @ weight
    assert len([name for name, _, _ in seen.calls if name == "_to_copy"]) == 4


def test_a_cast_is_forgotten_with_the_outermost_region(rules) -> None:
    weight = torch.ones(2, 2, requires_grad=True)
    for value in (1.0, 3.0):
        with torch.no_grad():
            weight.fill_(value)
        with torch.autocast("cpu"):
            assert (torch.ones(1, 2) @ weight)[0, 0] == 2 * value


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_cast_that_was_made_without_gradients_is_as_torchs_own(without) -> None:
    def has_gradient(dtype) -> bool:
        weight = torch.ones(2, 2, requires_grad=True)
        with torch.autocast("cpu", dtype):
            with without():
                torch.ones(1, 2) @ weight
            return (torch.ones(1, 2) @ weight).requires_grad

    native = has_gradient(torch.bfloat16)
    with cuda_rules():
        assert has_gradient(torch.bfloat16) == native


def test_other_threads_have_the_rules(rules) -> None:
    found = []

    def work():
        for kind in ("cuda", "cpu"):
            with torch.autocast(kind):
                product = full(2, 2) @ full(2, 2)
                found.append((product.dtype, product.exp().dtype))
        found.append((torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(HALF, FULL), (HALF, FULL), (HALF, False)]


def test_everything_is_as_before_when_it_ends() -> None:
    def native():
        with torch.autocast("cpu"):
            product = full(2, 2) @ full(2, 2)
            return product.dtype, product.exp().dtype, torch.cat([product, full(2, 2)]).dtype

    before = native()
    with cuda_rules():
        assert native() != before
    assert native() == before
    assert torch.get_autocast_dtype("cuda") is HALF
    assert not torch.is_autocast_enabled("cuda")
    half(2, 2) @ half(2, 2)


# What reduced operands make


@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "call", "shapes"),
    [
        ("mm", torch.mm, [(3, 4), (4, 5)]),
        ("addmm", torch.addmm, [(5,), (3, 4), (4, 5)]),
        ("bmm", torch.bmm, [(2, 3, 4), (2, 4, 5)]),
        ("convolution", F.conv2d, [(2, 3, 6, 6), (4, 3, 3, 3), (4,)]),
        ("convolution", F.conv_transpose1d, [(2, 3, 6), (3, 4, 3)]),
        (None, F.scaled_dot_product_attention, [(1, 2, 4, 8)] * 3),
    ],
)
def test_products_are_float32s_of_rounded_operands_rounded(
    rules, dtype, name, call, shapes
) -> None:
    torch.manual_seed(0)
    operands = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    wide = [each.detach().float().requires_grad_() for each in operands]
    with Seen() as seen:
        made = call(*operands)
        gradients = torch.autograd.grad(made.sum(), operands)
    expected = call(*wide)
    assert made.dtype is dtype
    torch.testing.assert_close(made, expected.to(dtype), rtol=0, atol=0)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected.sum(), wide), strict=True):
        assert gradient.dtype is dtype
        # Attention's backward pass reads its output, which is rounded.
        close = {} if name else {"rtol": 0.02, "atol": 0.01}
        torch.testing.assert_close(gradient, wanted.to(dtype), **close)
    assert name is None or (name, dtype, dtype) in seen.calls, "watchers see the reduced dtype"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"num_layers": 2},
        {"bidirectional": True, "num_layers": 2},
        {"bias": False},
        {"batch_first": True, "bidirectional": True},
        {"proj_size": 3},
    ],
)
@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_an_lstm_is_float32s_of_rounded_weights(rules, given, with_states) -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(4, 6, **given)
    wide = copy.deepcopy(layer)
    for weight in wide.parameters():
        weight.data = weight.data.half().float()
    inputs = torch.randn(5, 2, 4).half().float()
    states = None
    if with_states:
        batch = 5 if layer.batch_first else 2
        rows = layer.num_layers * (2 if layer.bidirectional else 1)
        states = tuple(
            torch.randn(rows, batch, size).half().float() for size in (layer.proj_size or 6, 6)
        )
    found, expected = [], []
    for model, into, enabled in ((layer, found, True), (wide, expected, False)):
        given_inputs = inputs.clone().requires_grad_()
        with torch.autocast("cpu", enabled=enabled):
            made, (h, c) = model(given_inputs, states)
        (made.float().square().sum() + h.float().sum() + c.float().sum()).backward()
        into += [made, h, c, given_inputs.grad, *(each.grad for each in model.parameters())]
    assert [each.dtype for each in found[:3]] == [HALF] * 3
    assert [each.dtype for each in found[3:]] == [FULL] * len(found[3:])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=0.02, atol=0.02)


def test_an_lstm_is_one_kernel_of_the_reduced_dtype_to_a_layer(region) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("needs oneDNN")
    layer = nn.LSTM(4, 6, 2)
    with Seen() as seen:
        layer(full(5, 2, 4))[0].float().sum().backward()
    names = [call for call in seen.calls if "rnn" in call[0]]
    assert (
        names
        == [("mkldnn_rnn_layer", HALF, HALF)] * 2 + [("mkldnn_rnn_layer_backward", HALF, HALF)] * 2
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.mm(half(2, 2), full(2, 2)),
        lambda: torch.mm(half(2, 2), half(2, 2).bfloat16()),
        lambda: F.linear(full(2, 2), half(2, 2), half(2)),
        lambda: F.conv1d(full(1, 2, 4), half(2, 2, 2)),
    ],
)
def test_dtypes_that_do_not_mix_on_cuda_do_not_mix(rules, call) -> None:
    with pytest.raises(RuntimeError):
        call()


@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16])
def test_the_gradients_of_fused_attention_are_as_close_as_the_dtype(rules, dtype) -> None:
    torch.manual_seed(0)
    operands = [torch.randn(1, 2, 64, 16) for _ in range(3)]
    operands[0] *= 12
    operands[1] *= 12
    rounded = [each.to(dtype).requires_grad_() for each in operands]
    wide = [each.detach().float().requires_grad_() for each in rounded]
    F.scaled_dot_product_attention(*rounded).sum().backward()
    F.scaled_dot_product_attention(*wide).sum().backward()
    for ours, theirs in zip(rounded, wide, strict=True):
        difference = (ours.grad.float() - theirs.grad).norm() / theirs.grad.norm()
        assert difference < (0.005 if dtype is HALF else 0.03)


def test_the_noise_that_an_operator_writes_is_kept(rules) -> None:
    value = (torch.rand(1000) - 0.5).half().requires_grad_()
    F.rrelu(value, 0.1, 0.3, training=True).float().sum().backward()
    assert ((value.grad >= 0.09) & (value.grad <= 1)).all()


def test_the_states_of_an_lstm_may_be_in_any_order(region) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.LSTM(4, 6, batch_first=True), full(2, 3, 4)
    state = torch.randn(6, 2, 1).permute(2, 1, 0)
    loose, dense = (layer(inputs, (h, h))[0] for h in (state, state.contiguous()))
    assert torch.equal(loose, dense)


def test_a_product_overflows_where_its_dtype_does(rules) -> None:
    big = torch.full((1, 4), 300.0)
    with torch.autocast("cpu"):
        assert (big @ big.T).item() == float("inf")
    assert (big @ big.T).item() == 360_000


def test_what_is_saved_for_backward_is_in_the_reduced_dtype(region) -> None:
    saved = []

    def pack(tensor):
        saved.append(tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        F.conv2d(full(1, 2, 5, 5), full(3, 2, 3, 3).requires_grad_())
    assert saved == [HALF, HALF]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.avg_pool3d(x.view(1, 1, 2, 4, 4), 2),
        lambda x: F.rrelu(x, training=True),
        torch.round,
        lambda x: F.max_pool3d(x.view(1, 1, 2, 4, 4), 2),
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: F.batch_norm(x, full(8), full(8), full(8), full(8), training=True),
        lambda x: F.pad(x.view(1, 4, 8), (1, 1), mode="reflect"),
        lambda x: F.grid_sample(x.view(1, 1, 4, 8), half(1, 3, 3, 2), align_corners=False),
        lambda x: F.unfold(x.view(1, 1, 4, 8), 2),
        lambda x: x.sort().values,
        lambda x: x.cumsum(0, dtype=HALF),
    ],
)
def test_what_only_cuda_computes_in_float16_is_computed(region, call) -> None:
    value = half(4, 8).requires_grad_()
    made = call(value)
    assert made.dtype is HALF
    if made.requires_grad:
        made.float().sum().backward()
        assert value.grad.dtype is HALF


def test_the_workspace_of_a_product_is_not_in_the_peak(rules) -> None:
    left, right = half(512, 512), half(512, 512)
    with peak_memory(Device(torch.device("cpu"))) as memory:
        made = left @ right
        del left
        again = made @ right
        assert memory.stop().peak_bytes == made.nbytes + again.nbytes


@pytest.mark.parametrize("softmax", [F.softmax, F.log_softmax])
def test_softmax_reads_float16_and_writes_float32_as_one_operator(region, softmax) -> None:
    value = half(2, 3).requires_grad_()
    with Seen() as seen:
        made = softmax(value, -1)
        made.square().sum().backward()
    assert (f"_{softmax.__name__}", HALF, FULL) in seen.calls
    wide = value.detach().float().requires_grad_()
    softmax(wide, -1).square().sum().backward()
    torch.testing.assert_close(value.grad, wide.grad.half())
