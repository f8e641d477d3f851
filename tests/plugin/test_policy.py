"""Static runs without a GPU: CUDA's rules, from a test file to the report."""

from __future__ import annotations

import json

import pytest

from pytest_amp.lab.machine import device

STATIC = ("--amp-static", "--amp-steps=4", "--amp-json=amp.json")


@pytest.fixture(autouse=True)
def _no_gpu_and_no_policy(monkeypatch: pytest.MonkeyPatch, _usual_options) -> None:
    monkeypatch.setattr(device, "how_many", lambda _: 0)
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:asyncio")


SETUP = """
import pytest, torch
import torch.nn.functional as F

def setup_of(loss, device="cpu", region="cpu", before_step=lambda model, scaler, optimizer: None):
    def setup(arm):
        model = torch.nn.Linear(8, 8).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        inputs, targets = torch.rand(4, 8), torch.rand(4, 8)
        def step():
            optimizer.zero_grad()
            with torch.autocast(region, enabled=arm.enabled, dtype=arm.dtype):
                value = loss(model(inputs), targets)
            arm.scaler.scale(value).backward()
            before_step(model, arm.scaler, optimizer)
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return value
        return step
    return setup
"""


def run(pytester: pytest.Pytester, body: str, *options: str):
    pytester.makepyfile(test_it=SETUP + body)
    result = pytester.runpytest(*STATIC, *options)
    written = pytester.path / "amp.json"
    tests = json.loads(written.read_text())["tests"] if written.exists() else []
    return result, tests


HEALTHY = """
def test_step(amp_benchmark):
    amp_benchmark(setup_of(F.mse_loss))
"""


def test_the_dtype_is_cudas_and_the_heading_says_what_was_assumed(pytester) -> None:
    result, (test,) = run(pytester, HEALTHY)
    result.assert_outcomes(passed=1)
    heading = " ".join(result.stdout.str().split())  # it is wrapped behind the processor's name
    assert ", float16, torch " in heading
    assert "autocast rules cuda (assumed), " in heading
    assert test["environment"]["dtype"] == "float16"
    assert test["environment"]["flags"]["autocast_rules"] == "cuda (assumed)"
    assert test["arms"]["amp"]["scales"], "the GradScaler is live"
    assert test["notes"] == []


def test_who_asks_for_the_cpus_own_rules_gets_them(pytester) -> None:
    result, (test,) = run(pytester, HEALTHY, "--amp-policy=native")
    result.assert_outcomes(passed=1)
    assert test["environment"]["dtype"] == "bfloat16"
    assert "autocast_rules" not in test["environment"]["flags"]


def test_who_asks_for_cudas_rules_chooses_the_dtype_too(pytester) -> None:
    result, (test,) = run(pytester, HEALTHY, "--amp-policy=cuda", "--amp-dtype=bfloat16")
    result.assert_outcomes(passed=1)
    assert test["environment"]["dtype"] == "bfloat16"
    assert test["environment"]["flags"]["autocast_rules"] == "cuda"


def test_clipping_scaled_gradients_is_found(pytester) -> None:
    body = """
def clip(model, scaler, optimizer):
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)

def test_step(amp_benchmark):
    amp_benchmark(setup_of(F.mse_loss, before_step=clip))
"""
    result, (test,) = run(pytester, body)
    result.assert_outcomes(failed=1)
    (found,) = [each for each in test["findings"] if each["code"] == "AMP203"]
    assert found["location"].startswith("test_it.py:")


def test_what_cuda_refuses_is_told_with_its_line(pytester) -> None:
    body = """
def test_step(amp_benchmark):
    amp_benchmark(setup_of(lambda out, target: F.binary_cross_entropy(out.sigmoid(), target)))
"""
    result, (test,) = run(pytester, body)
    assert [each["code"] for each in test["findings"]] == ["AMP109"]
    assert "binary_cross_entropy_with_logits" in test["findings"][0]["message"]
    result.stdout.no_fnmatch_line("*pytest_amp*.py:*")  # no frame of ours is shown
    assert test["findings"][0]["location"].startswith("test_it.py:")
    result, _ = run(pytester, body, "--amp-policy=native")
    result.assert_outcomes(passed=1)


def test_what_cuda_sums_in_float32_does_not_overflow(pytester) -> None:
    body = """
def test_step(amp_benchmark):
    amp_benchmark(setup_of(lambda out, _: (out * 1e4).sum().square() * 1e-12))
"""
    result, (test,) = run(pytester, body)
    result.assert_outcomes(passed=1)
    assert test["findings"] == []


def test_a_test_for_cuda_runs_on_the_cpu(pytester) -> None:
    body = """
@pytest.mark.amp(dtype="bfloat16")
def test_step(amp_benchmark, cuda_device):
    assert cuda_device.type == "cpu"
    amp_benchmark(setup_of(F.mse_loss, cuda_device, "cuda"))
"""
    result, (test,) = run(pytester, body)
    result.assert_outcomes(passed=1)
    assert test["environment"]["flags"]["autocast_rules"] == "cuda (assumed)"
    assert test["coverage"] == 1


@pytest.mark.parametrize("option", ["--amp-policy=native", "--amp-device=cpu"])
def test_a_test_for_cuda_is_skipped_where_its_rules_are_not_wanted(pytester, option) -> None:
    body = """
def test_step(amp_benchmark, cuda_device):
    amp_benchmark(setup_of(F.mse_loss, cuda_device, "cuda"))
"""
    result, _ = run(pytester, body, option)
    result.assert_outcomes(**{"skipped": 1} if "policy" in option else {"passed": 1})


def test_a_test_that_measures_nothing_is_skipped_as_ever(pytester) -> None:
    result, _ = run(pytester, "def test_plain(cuda_device): torch.cuda.synchronize()\n")
    result.assert_outcomes(skipped=1)


def test_a_test_that_calls_cuda_itself_is_skipped_and_says_so(pytester) -> None:
    body = """
def test_step(amp_benchmark, cuda_device):
    def setup(arm):
        torch.nn.Linear(4, 4).cuda()
    amp_benchmark(setup)
"""
    result, _ = run(pytester, body, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*needs a CUDA device itself*"])


def test_a_layer_that_is_left_outside_of_the_region_is_told(pytester) -> None:
    body = """
def test_step(amp_benchmark):
    def setup(arm):
        body, head = torch.nn.Linear(8, 8), torch.nn.Linear(8, 1)
        optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.01)
        inputs = torch.rand(4, 8)
        def step():
            optimizer.zero_grad()
            with torch.autocast("cuda", enabled=arm.enabled):
                hidden = body(inputs)
            loss = head(hidden).square().mean()
            arm.scaler.scale(loss).backward()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            return loss
        return step
    amp_benchmark(setup)
"""
    _, (test,) = run(pytester, body)
    assert [each["code"] for each in test["findings"]] == ["AMP109"]


def test_strict_fails_a_test_for_cuda_where_there_is_none(pytester) -> None:
    body = "@pytest.mark.amp\ndef test_step(cuda_device, amp_benchmark): pass\n"
    result, _ = run(pytester, body, "--amp-strict=device")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*needs a CUDA device*"])


def test_a_timed_run_keeps_to_the_cpus_rules(pytester) -> None:
    pytester.makepyfile(test_it=SETUP + HEALTHY)
    result = pytester.runpytest("--amp-policy=cuda", "--amp-max-time=1")
    result.stdout.fnmatch_lines(["*policy='cuda' is for --amp-static*"])
    result.assert_outcomes(failed=1)


def test_a_map_under_cudas_rules_is_cudas(pytester) -> None:
    pytester.makepyfile(test_it=SETUP + HEALTHY)
    pytester.runpytest(*STATIC, "--amp-snapshot=update").assert_outcomes(passed=1)
    written = (pytester.path / "__amp__" / "test_it.txt").read_text()
    assert "\ntest_step on cuda in float16\n" in written
    pytester.runpytest(*STATIC, "--amp-snapshot").assert_outcomes(passed=1)


FRAMEWORK = """
def test_step(amp_benchmark):
    def setup(arm):
        try:
            told = {told}
        except Exception:  # whatever a setup catches
            raise AssertionError
        if told in ("fp16", "16-mixed"):
            raise ValueError("float16 needs a GPU")
        return setup_of(F.mse_loss)(arm)
    amp_benchmark(setup)
"""


@pytest.mark.parametrize("told", ["arm.mixed_precision", "arm.lightning_precision"])
def test_a_framework_that_has_no_float16_on_a_cpu_is_told_bfloat16(pytester, told) -> None:
    result, (test,) = run(pytester, FRAMEWORK.format(told=told))
    result.assert_outcomes(passed=1)
    assert test["environment"]["dtype"] == "bfloat16"
    assert test["environment"]["flags"]["autocast_rules"] == "cuda (assumed)"
    (note,) = test["notes"]
    assert note.startswith("frameworks that are told the precision have no float16 on a CPU")


def test_a_setup_that_catches_everything_is_told_bfloat16_as_well(pytester) -> None:
    body = FRAMEWORK.replace("except Exception:", "except:").replace(
        "raise AssertionError", "told = 'no'"
    )
    _, (test,) = run(pytester, body.format(told="arm.mixed_precision"))
    assert (test["verdict"], test["environment"]["dtype"]) == ("pass", "bfloat16")
    assert sum(test["phases_s"].values()) <= test["duration_s"]


@pytest.mark.parametrize("option", ["--amp-dtype=float16", "--amp-candidate=fp16"])
def test_who_asks_for_float16_gets_what_the_framework_makes_of_it(pytester, option) -> None:
    _, (test,) = run(
        pytester, FRAMEWORK.format(told="arm.mixed_precision"), "--amp-policy=cuda", option
    )
    assert test["error"]["message"] == "float16 needs a GPU"
