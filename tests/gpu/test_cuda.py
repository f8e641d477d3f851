"""The gate on a real CUDA device: speed, memory, timing and what happens when memory runs out."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import pytest
import torch

from pytest_amp import AmpRegression, Arm, Recipe
from pytest_amp.lab.arm import Setup
from pytest_amp.lab.machine import device
from pytest_amp.results.report import AmpReport
from tests.helpers.lab import measure, train
from tests.helpers.steps import Step, matmul_heavy, with_dropout

GIB = 2**30


def measured(setup: Setup, **given: object) -> AmpReport:
    return measure(setup, device.choose("cuda"), **{"static": False, "steps": 20, **given})


@pytest.fixture(autouse=True)
def _whole_device() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_matmul_heavy_step_is_faster(dtype: str) -> None:
    report = measured(matmul_heavy, dtype=dtype, min_speedup=1.0, min_coverage=0.99)
    report.check()
    assert report.gate("speedup").verdict == "pass"
    assert report.speedup is not None
    assert report.speedup.low is not None
    assert report.speedup.low > 1
    assert report.coverage == 1
    assert report.environment is not None
    assert report.environment.native_support
    assert report.findings == ()


def test_the_fixture_and_the_marker_do_the_same(
    amp_benchmark: object, cuda_device: torch.device
) -> None:
    result = amp_benchmark(matmul_heavy)  # type: ignore[operator]
    assert result.environment.device == torch.cuda.get_device_name(cuda_device)
    assert result.verdict == "pass"


def test_peak_memory_is_the_devices_own_counter() -> None:
    """The same steps by hand, between reset_peak_memory_stats and max_memory_allocated."""
    steps = 5
    report = measured(matmul_heavy, steps=steps, static=True, dtype="bfloat16")
    where = device.choose("cuda")
    for name, arm in report.arms.items():
        where.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step = matmul_heavy(Arm(name, where, Recipe.parse("fp32" if name == "fp32" else "bf16")))  # type: ignore[arg-type]
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        by_hand = torch.cuda.max_memory_allocated() - before
        del step
        assert arm.peak_bytes == pytest.approx(by_hand, rel=0.01)
        assert arm.reserved_bytes is not None
        assert arm.peak_bytes is not None
        assert arm.reserved_bytes >= arm.peak_bytes


def test_peak_memory_repeats() -> None:
    peaks = {
        (report.fp32.peak_bytes, report.amp.peak_bytes)
        for report in (measured(matmul_heavy, steps=3, static=True) for _ in range(3))
    }
    assert len(peaks) == 1


def by_events(step: Step) -> float:
    """Seconds per step, the median of 30 blocks of 10, by the device's own events."""
    for _ in range(5):
        step()
    blocks = []
    for _ in range(30):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(10):
            step()
        end.record()
        torch.cuda.synchronize()
        blocks.append(begin.elapsed_time(end) / 10 / 1000)
    return statistics.median(blocks)


def wide(arm: Arm) -> Step:
    """So wide that the device, not the host, sets the pace of the amp arm, too."""
    return matmul_heavy(arm, width=4096)


def test_the_step_time_is_what_cuda_events_see() -> None:
    report = measured(wide, max_time=10)
    step = wide(Arm("fp32", device.choose("cuda"), Recipe()))
    assert report.fp32.step_time_s == pytest.approx(by_events(step), rel=0.05)


def heavy_to_hold(arm: Arm) -> Step:
    """Holds 2 GiB beside a small model."""
    held = torch.zeros(2 * GIB, dtype=torch.uint8, device=arm.device)
    model = torch.nn.Linear(256, 256).to(arm.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(64, 256, device=arm.device)

    def loss() -> torch.Tensor:
        return torch.nn.functional.mse_loss(model(x), x) + 0 * held[0]

    return train(arm, optimizer, loss)


def limit_memory(bytes_above: int) -> None:
    torch.cuda.empty_cache()
    free_of_others = torch.cuda.memory_reserved() + bytes_above
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(free_of_others / total)


def test_arms_that_do_not_fit_together_take_turns() -> None:
    limit_memory(3 * GIB)
    report = measured(heavy_to_hold, min_speedup=0.01, steps=3)
    assert report.verdict == "pass"
    assert any("did not fit in memory together" in note for note in report.notes)


def test_an_arm_that_does_not_fit_at_all_is_named() -> None:
    limit_memory(GIB)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        measured(heavy_to_hold, steps=3)
    assert any("amp arm" in note for note in caught.value.__notes__)


def test_memory_is_given_back_afterwards() -> None:
    where = device.choose("cuda")
    where.empty_cache()  # and cuBLAS's workspaces, of which there is one for each thread
    before = torch.cuda.memory_allocated()
    measured(heavy_to_hold, static=True, steps=2)
    where.empty_cache()
    assert torch.cuda.memory_allocated() <= before + 8 * 2**20  # what cuBLASLt keeps for good


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_dropout_masks_are_not_held_against_amp(dtype: str) -> None:
    """CUDA draws other masks in another dtype: the floor knows by how much that moves the loss."""
    report = measured(with_dropout, dtype=dtype, static=True)
    assert report.gate("loss_diff").verdict in ("pass", "inconclusive")
    assert [finding for finding in report.findings if finding.severity == "error"] == []


def test_a_threshold_by_the_devices_name_is_the_one_in_force() -> None:
    name = torch.cuda.get_device_name().split()[-1]
    with pytest.raises(AmpRegression, match="below 900x"):
        measured(matmul_heavy, min_speedup={"cuda": 0.01, f"*{name}*": 900}).check()


def test_flags_that_an_arm_sets_are_its_own() -> None:
    before = torch.backends.cuda.matmul.allow_tf32

    def setup(arm: Arm) -> Step:
        torch.backends.cuda.matmul.allow_tf32 = arm.enabled
        return matmul_heavy(arm, width=256)

    report = measured(setup, static=True)
    assert "AMP005" in {finding.code for finding in report.findings}
    assert torch.backends.cuda.matmul.allow_tf32 == before


def test_an_overflow_in_float16_is_located() -> None:
    def setup(arm: Arm) -> Step:
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 1)).to(arm.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-8)
        x = torch.full((8, 64), 1e4, device=arm.device)

        def loss() -> torch.Tensor:
            return model(x * 100).float().square().mean()

        return train(arm, optimizer, loss)

    report = measured(setup, dtype="float16", static=True)
    found = {finding.code: finding for finding in report.findings}
    assert "AMP301" in found
    assert found["AMP301"].module == "0"


def test_a_compiled_model_is_timed_compiled() -> None:
    graphs = []

    def setup(arm: Arm) -> Step:

        def backend(graph: torch.fx.GraphModule, _: object) -> object:
            def run(*args: object) -> object:
                graphs.append(arm.name)
                return graph(*args)

            return run

        model = torch.nn.Linear(256, 256).to(arm.device)
        compiled = torch.compile(model, backend=backend)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        x = torch.randn(64, 256, device=arm.device)
        return train(arm, optimizer, lambda: compiled(x).square().mean())

    report = measured(setup, max_time=3)
    assert report.speedup is not None
    least = report.speedup.pairs * report.speedup.block_steps
    assert graphs.count("amp") > least
    assert graphs.count("fp32") > least


# torch captures one, to have a pool.
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_model_compiled_into_cuda_graphs_is_measured_and_its_coverage_known() -> None:
    def setup(arm: Arm) -> Step:
        model = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(3))).to(arm.device)
        compiled = torch.compile(model, mode="reduce-overhead")
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        x = torch.randn(512, 512, device=arm.device)
        return train(arm, optimizer, lambda: compiled(x).square().mean())

    report = measured(setup, max_time=10)
    assert report.verdict == "pass"
    assert report.coverage == 1
    assert report.speedup is not None
    assert report.notes == ()


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_loss_that_is_read_a_step_late_is_still_there_in_both_arms() -> None:
    """Alone it is: a run of the other arm's graphs must not free it."""

    def setup(arm: Arm) -> Step:
        model = torch.nn.Linear(256, 256).to(arm.device)
        x = torch.randn(64, 256, device=arm.device)
        forward = torch.compile(lambda: model(x).float().square().mean(), mode="reduce-overhead")
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        late: list[torch.Tensor] = []

        def step() -> torch.Tensor:
            if late:
                late.pop().item()
            optimizer.zero_grad(set_to_none=True)
            with arm.autocast():
                loss: torch.Tensor = forward()
            loss.backward()
            optimizer.step()
            late.append(loss.detach())
            return loss

        return step

    assert measured(setup, dtype="bfloat16", min_speedup=0.01, max_time=6).verdict == "pass"


def test_a_step_that_must_not_wait_for_the_device_is_measured() -> None:
    def setup(arm: Arm) -> Step:
        step = matmul_heavy(arm, width=256)
        torch.cuda.set_sync_debug_mode("error")
        return step

    report = measured(setup, dtype="bfloat16", min_speedup=0.01, max_time=4)
    assert report.verdict == "pass"
    assert torch.cuda.get_sync_debug_mode() == 0


def test_an_arm_on_the_cpu_is_measured_beside_a_gpu() -> None:
    """Its memory is counted by torch's profiler, which tells of the GPU's runtime, too."""
    matmul_heavy(Arm("fp32", device.choose("cuda"), Recipe()), width=256)()
    report = measure(lambda arm: matmul_heavy(arm, width=64), device.choose("cpu"), steps=5)
    assert report.verdict == "pass"
    assert report.fp32.peak_bytes


def test_a_fresh_process_draws_the_same_behind_an_amp_test(pytester: pytest.Pytester) -> None:
    """CUDA is first used by the amp test, and a seed has been waiting for that."""
    pytester.makeconftest("import torch\ntorch.manual_seed(7)")
    pytester.makepyfile(
        test_a="""
        import torch

        def test_amp(amp_benchmark):
            amp_benchmark(lambda arm: lambda: torch.randn(3, device=arm.device).mean())
        """,
        test_b="""
        import torch

        def test_behind():
            print("DRAWN", torch.randn(3, device="cuda").tolist())
        """,
    )
    drawn = set()
    for tests in (("test_a.py", "test_b.py"), ("test_b.py",)):
        result = pytester.runpytest_subprocess("-s", "--amp-static", *tests)
        drawn.add(next(line for line in result.outlines if "DRAWN" in line).partition("DRAWN")[2])
    assert len(drawn) == 1


# Autograd warns of the stream on which the graph is captured.
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")
def test_coverage_of_a_graph_that_the_user_captured_is_unknown() -> None:
    def setup(arm: Arm) -> Step:
        model = torch.nn.Linear(256, 256).to(arm.device)
        x = torch.randn(64, 256, device=arm.device)
        with arm.autocast(cache_enabled=False):
            forward = torch.cuda.make_graphed_callables(model, (x,))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        return train(arm, optimizer, lambda: forward(x).float().square().mean())

    report = measured(setup, static=True)
    assert report.coverage is None
    assert "a CUDA graph" in report.gate("coverage").reason
    assert "AMP101" not in {finding.code for finding in report.findings}


def test_the_amp_arms_step_time_is_what_cuda_events_see_of_it_with_its_scaler() -> None:
    report = measured(wide, dtype="float16", max_time=10)
    step = wide(Arm("amp", device.choose("cuda"), Recipe.parse("fp16")))
    assert report.amp.step_time_s == pytest.approx(by_events(step), rel=0.05)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_second_device_is_measured_by_its_number_and_the_first_stays_current() -> None:
    second = device.choose("cuda:1")
    before = torch.cuda.memory_allocated(0)
    report = measure(matmul_heavy, second, static=False, min_speedup=0.01, steps=5)
    assert report.verdict == "pass"
    assert report.fp32.peak_bytes
    assert torch.cuda.memory_allocated(0) == before
    assert torch.cuda.current_device() == 0
