"""The fixtures amp_scaler, amp_device and cuda_device; amp_benchmark has tests of its own."""

from __future__ import annotations

import pytest
import torch

from pytest_amp import AmpScaler
from tests.helpers.project import QUICK

LOOP = """
import torch

def train(scaler, steps, before_step=lambda n: None):
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    weights = [model.weight.detach().clone()]
    for number in range(steps):
        before_step(number)
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        weights.append(model.weight.detach().clone())
    return weights
"""


@pytest.fixture
def loops(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(loops=LOOP)
    pytester.syspathinsert()
    return pytester


def test_a_scaler_alone_shows_that_a_loop_survives_a_skipped_step(
    loops: pytest.Pytester,
) -> None:
    loops.makepyfile(
        """
        import torch
        from loops import train

        def test_loop(amp_scaler):
            assert isinstance(amp_scaler, torch.amp.GradScaler)
            weights = train(amp_scaler, 3, lambda n: n == 1 and amp_scaler.overflow_next())
            assert amp_scaler.skipped_steps == 1
            assert amp_scaler.scales == (65536.0, 32768.0, 32768.0)
            assert not torch.equal(weights[0], weights[1])
            assert torch.equal(weights[1], weights[2])   # the skipped one
            assert not torch.equal(weights[2], weights[3])
        """
    )
    loops.runpytest("--amp-device=cpu").assert_outcomes(passed=1)


def test_a_test_with_a_scaler_only_is_no_amp_test(loops: pytest.Pytester) -> None:
    loops.makepyfile("def test_loop(amp_scaler): pass")
    result = loops.runpytest("-m", "amp", "--amp-device=cpu")
    result.assert_outcomes(deselected=1)


def test_every_test_has_a_scaler_of_its_own(loops: pytest.Pytester) -> None:
    loops.makepyfile(
        """
        from loops import train

        def test_one(amp_scaler):
            amp_scaler.overflow_next()
            train(amp_scaler, 1)
            assert amp_scaler.skipped_steps == 1

        def test_other(amp_scaler):
            assert amp_scaler.skipped_steps == 0
            assert amp_scaler.scales == ()
        """
    )
    loops.runpytest("--amp-device=cpu").assert_outcomes(passed=2)


def test_a_disabled_scaler_can_not_overflow() -> None:
    with pytest.raises(RuntimeError, match="it scales nothing and skips nothing"):
        AmpScaler("cpu", enabled=False).overflow_next()


def test_overflow_next_reaches_lists_of_losses_too() -> None:
    scaler = AmpScaler("cpu")
    scaler.overflow_next()
    scaled = scaler.scale([torch.ones(()), torch.ones(())])
    assert torch.isinf(scaled[0])
    assert torch.isfinite(scaled[1])
    assert torch.isfinite(scaler.scale(torch.ones(())))  # the next one only


def test_inside_amp_benchmark_the_scaler_is_the_running_arms(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest, torch

        @pytest.mark.amp(dtype="float16")
        def test_step(amp_benchmark, amp_scaler):
            outside = amp_scaler.state_dict()
            seen = []

            def setup(arm):
                model = torch.nn.Linear(4, 1)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

                def step():
                    assert amp_scaler.is_enabled() == arm.enabled
                    assert amp_scaler.get_scale() == arm.scaler.get_scale()
                    optimizer.zero_grad()
                    with arm.autocast():
                        loss = 0.01 * model(torch.ones(2, 4)).float().square().mean()
                    amp_scaler.scale(loss).backward()
                    amp_scaler.step(optimizer)
                    amp_scaler.update()
                    seen.append((arm.name, arm.scaler.scales))
                    return loss
                return step

            result = amp_benchmark(setup)
            assert max(len(scales) for name, scales in seen if name == "amp") > 0
            assert all(scales == () for name, scales in seen if name == "fp32")
            assert result.amp.scales[0] == 65536.0
            assert amp_scaler.state_dict() == outside
            assert amp_scaler.skipped_steps == 0
        """
    )
    project.runpytest(*QUICK).assert_outcomes(passed=1)


RUNNING_ARM = """
import pytest, torch

def setup_with(amp_scaler, before_step):
    def setup(arm):
        model = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        numbers = iter(range(99))

        def step():
            number = next(numbers)
            if arm.enabled and number == 1:
                before_step()
            optimizer.zero_grad()
            with arm.autocast():
                loss = model(torch.ones(2, 4)).float().square().mean() / 16
            amp_scaler.scale(loss).backward()
            amp_scaler.step(optimizer)
            amp_scaler.update()
            return loss
        return step
    return setup

@pytest.mark.amp(dtype="float16")
def test_float16(amp_benchmark, amp_scaler):
    result = amp_benchmark(setup_with(amp_scaler, amp_scaler.overflow_next))
    assert result.amp.skipped_steps == 1
    assert result.amp.scales == (65536.0, 32768.0, 32768.0, 32768.0)
    assert result.amp.losses[1] == result.amp.losses[2]
    assert result.fp32.losses[1] == result.fp32.losses[2]

@pytest.mark.amp(dtype="bfloat16")
def test_bfloat16(amp_benchmark, amp_scaler):
    def refused():
        with pytest.raises(RuntimeError, match="disabled GradScaler"):
            amp_scaler.overflow_next()
    assert amp_benchmark(setup_with(amp_scaler, refused)).amp.skipped_steps == 0
"""


def test_overflow_next_inside_amp_benchmark_is_the_running_arms_overflow(
    project: pytest.Pytester,
) -> None:
    """Its skip is counted and repeated in fp32; where the arm needs no scaler, it is refused."""
    project.makepyfile(RUNNING_ARM)
    project.runpytest("--amp-static", "--amp-steps=4").assert_outcomes(passed=2)


def test_the_device_is_the_option_s(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import torch
        def test_it(amp_device):
            assert amp_device == torch.device("cpu")
        """
    )
    pytester.runpytest("--amp-device=cpu").assert_outcomes(passed=1)


def test_without_cuda_a_cuda_device_skips_with_the_reason(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pytester.makepyfile("def test_it(cuda_device): assert False")
    result = pytester.runpytest("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED * needs a CUDA device: *torch *"])


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("option", "rank", "index"),
    [("auto", None, 0), ("cuda", None, 0), ("cuda:1", None, 1), ("auto", "1", 1), ("cpu", "3", 1)],
)
def test_with_cuda_it_is_this_process_s_device(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    two_gpus: None,
    option: str,
    rank: str | None,
    index: int,
) -> None:
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    pytester.makepyfile(
        f"""
        import torch
        def test_it(cuda_device):
            assert cuda_device == torch.device("cuda", {index})
        """
    )
    pytester.runpytest(f"--amp-device={option}").assert_outcomes(passed=1)


def test_a_device_index_that_is_not_there_is_told(
    pytester: pytest.Pytester, two_gpus: None
) -> None:
    pytester.makepyfile("def test_it(amp_device): pass")
    result = pytester.runpytest("--amp-device=cuda:7")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*the device 'cuda:7' is not there: this machine has cuda (device 0 to 1), cpu.*"]
    )
