"""AMP109 on records: what it says of an exception, and which fix it names."""

from __future__ import annotations

import pytest

from pytest_amp.results.values import Finding
from pytest_amp.rules import registry
from pytest_amp.rules.base import RaisedAlone

PUT = RaisedAlone(
    "amp",
    "RuntimeError",
    "Index put requires the source and destination dtypes match",
    location="train.py:12",
    op="aten::index_put_",
    dtypes=("float32", "bfloat16"),
)


def said(raised: RaisedAlone) -> Finding:
    [found] = registry.findings(raised, ("AMP",), {})
    return found


def test_it_names_the_arm_the_line_the_operator_and_the_dtypes() -> None:
    found = said(PUT)
    assert (found.code, found.severity, found.location) == ("AMP109", "error", "train.py:12")
    assert found.message.startswith(
        "the amp arm raises RuntimeError (in aten::index_put_ on float32 and bfloat16) where the "
        "fp32 arm runs: cast the source"
    )
    assert found.evidence["dtypes"] == ["float32", "bfloat16"]


def test_a_librarys_line_stands_beside_the_users() -> None:
    library = RaisedAlone("amp", "ValueError", "no", location="a.py:1", library="lib/net.py:7")
    assert "ValueError (at lib/net.py:7) where" in said(library).message


@pytest.mark.parametrize(
    ("message", "op", "dtypes", "fix"),
    [
        ("same scalar type", "aten::index_add", ("float32", "float16"), "cast the source to"),
        ("self.dtype", "aten::scatter_add", ("float32", "float16"), "cast the source to"),
        ("same dtype", "aten::addmm", ("float32", "float16"), "cast one side"),
        ("expected scalar type Float but found Half", None, (), "cast one side"),
        ("\"x\" not implemented for 'BFloat16'", "aten::x", ("bfloat16",), "compute it in float32"),
        ("linalg.inv: Low precision dtypes not supported", None, (), "compute it in float32"),
        ("something else", "aten::x", ("bfloat16",), "compute it in float32"),
        ("unsupported ScalarType BFloat16", None, ("bfloat16",), ".float().numpy()"),
        ("torch.nn.functional.binary_cross_entropy is unsafe", None, ("float16",), "with_logits"),
        ("The total norm is non-finite", None, (), "do not raise for them"),
        ("'NoneType' object is not callable", None, (), "look at what reaches this line"),
    ],
)
def test_each_kind_has_its_fix(message, op, dtypes, fix) -> None:
    raised = RaisedAlone("amp", "RuntimeError", message, op=op, dtypes=dtypes)
    assert fix in said(raised).message


def test_a_custom_function_is_to_be_decorated() -> None:
    raised = RaisedAlone(
        "amp", "RuntimeError", "same dtype", dtypes=("float16", "float32"), function="Gate"
    )
    assert "decorate Gate's forward with torch.amp.custom_fwd" in said(raised).message


def test_of_the_fp32_arm_it_asks_for_a_reference_that_runs() -> None:
    raised = RaisedAlone("fp32", "RuntimeError", "same dtype", dtypes=("float32", "float16"))
    assert said(raised).message.startswith("the fp32 arm raises RuntimeError (on float32 and")
    assert "one to arm.dtype" in said(raised).message
