"""AMP109 as a user sees it: torch's own exception, with a note, and the finding in the report."""

from __future__ import annotations

import pytest

from tests.helpers.project import CONFTEST, measure

STEP = """
import torch

def test_step(amp_benchmark):
    def setup(arm):
        model = torch.nn.Linear(8, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        inputs = torch.ones(4, 8)
        def step():
            optimizer.zero_grad()
            with arm.autocast():
                merged = torch.zeros(4, 4)
                merged[torch.arange(4)] = model(inputs)
            loss = merged.square().mean()
            loss.backward()
            optimizer.step()
            return loss
        return step
    amp_benchmark(setup)
"""


def test_the_exception_stays_with_a_note_and_a_finding(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=STEP)
    result, reports = measure(pytester)
    result.assert_outcomes(failed=1)
    report = reports["test_step"]
    assert (report["verdict"], report["error"]["type"]) == ("error", "RuntimeError")
    assert (report["error"]["arm"], report["error"]["step"]) == ("amp", 1)
    [finding] = report["findings"]
    assert (finding["code"], finding["name"]) == ("AMP109", "raises-in-one-arm")
    line = STEP.strip()[: STEP.index("merged[")].count("\n") + 1
    assert finding["location"] == f"test_it.py:{line}"
    result.stdout.fnmatch_lines(
        [
            "E *Index put requires the source and destination dtypes match*",
            f"E *AMP109 raises-in-one-arm (test_it.py:{line}): the amp arm raises RuntimeError*",
            "*error *AMP109 raises-in-one-arm*",
        ]
    )
