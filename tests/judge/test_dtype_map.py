"""The dtype map: what is in it, how it reads, what it says of a change. No torch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_amp.judge import dtype_map
from pytest_amp.judge.dtype_map import StoredMap, lines_of
from pytest_amp.judge.dtype_map_text import (
    BrokenMapError,
    Line,
    Section,
    Title,
    diff,
    document,
    parse,
    section,
    written,
)
from pytest_amp.observations import Operators, OpRow
from tests.helpers.observations import seen

TITLE = Title("test_step", "cpu", "bfloat16")
LINEAR = Line("layers.0.fc", "forward", "matmul", "bfloat16", 1)


def row(op, dtype="bfloat16", out=None, **other):
    return OpRow(f"aten::{op}", dtype, out or dtype, **{"module": "fc", "bytes": 8, **other})


def ops(*rows):
    return {
        (line.op, line.phase, line.dtype, line.calls) for line in lines_of(Operators(rows=rows))
    }


def stored(*lines, title=TITLE):
    return {title: Section(frozenset(lines), section(title, written(lines), "torch 2"))}


def judge(sections, *rows, update=False, **operators):
    snapshot = StoredMap("__amp__/test_x.txt", "test_step", update, sections)
    return dtype_map.judge(snapshot, seen(amp={"operators": Operators(rows=rows, **operators)}))


# What is in a map


def test_a_call_of_many_operators_is_one_line_in_the_dtype_that_it_returned() -> None:
    both = ((1, "float16"), (2, "float16"))
    part = {"composite": "attention", "part_of": both}
    rows = (
        row("_to_copy", "float16", "float32", **part),  # as torch's own products of float16 do
        row("bmm", "float32", count=4, flops=8, **part),
        row("_softmax", "float32", count=2, **part),
        row("_flash", "float32", composite="attention", part_of=((3, "float32"),)),
        row("relu", "float16"),
    )
    assert ops(*rows) == {
        ("attention", "forward", "float16", 2), ("attention", "forward", "float32", 1),
        ("relu", "forward", "float16", 1),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("matmul", ["mm", "addmm", "bmm", "baddbmm", "mv", "dot", "linear", "mkldnn_linear"]),
        ("convolution", ["convolution", "mkldnn_convolution", "cudnn_convolution_transpose"]),
        ("convolution", ["convolution_backward", "_slow_conv2d_forward", "_conv_depthwise2d"]),
        ("attention", ["_scaled_dot_product_flash_attention_for_cpu"]),
        ("attention", ["_scaled_dot_product_efficient_attention_backward"]),
        ("rnn", ["mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn_backward"]),
        (
            "batch_norm",
            ["native_batch_norm", "cudnn_batch_norm_backward", "_batch_norm_with_update"],
        ),
        ("layer_norm", ["native_layer_norm", "native_layer_norm_backward"]),
    ],
)
def test_kernels_that_torch_chooses_among_share_one_name(name, kernels) -> None:
    for kernel in kernels:
        assert ops(row(kernel)) == {(name, "forward", "bfloat16", 1)}


@pytest.mark.parametrize(
    "op",
    [
        "clone", "copy_", "empty_like", "zeros", "new_zeros", "fill_", "detach", "_to_copy",
        "slice_backward", "_unsafe_view", "_foreach_norm",
        "_amp_foreach_non_finite_check_and_unscale_",
    ],
)  # fmt: skip
def test_what_only_moves_memory_or_works_on_all_parameters_at_once_is_left_out(op) -> None:
    assert ops(row(op)) == set()


def test_views_updates_and_what_makes_no_number_are_left_out() -> None:
    assert ops(row("permute", bytes=0), row("mul", phase="update")) == set()
    assert ops(OpRow("aten::lt", "bfloat16", None, bytes=8)) == set()


def test_in_place_operators_count_as_those_that_are_not() -> None:
    assert ops(row("relu_", bytes=0), row("relu")) == {("relu", "forward", "bfloat16", 2)}


def test_casts_and_operators_that_change_the_dtype_show_both() -> None:
    assert ops(row("_to_copy", "float32", "bfloat16"), row("sum", out="float32")) == {
        ("cast", "forward", "float32 -> bfloat16", 1),
        ("sum", "forward", "bfloat16 -> float32", 1),
    }


def test_forward_recompute_and_backward_are_kept_apart() -> None:
    rows = [row("mm", phase=phase) for phase in ("forward", "recompute", "backward")]
    assert {phase for _, phase, _, _ in ops(*rows)} == {"forward", "recompute", "backward"}


def test_rows_that_differ_in_nothing_that_is_shown_are_one_line() -> None:
    assert ops(row("mm", autocast=True, count=2), row("addmm")) == {
        ("matmul", "forward", "bfloat16", 3)
    }


def test_an_operator_of_the_users_keeps_its_whole_name() -> None:
    ours = OpRow("mylib::conv_attention_", "bfloat16", "bfloat16", bytes=8)
    assert {line.op for line in lines_of(Operators(rows=(ours,)))} == {"mylib::conv_attention"}


def test_what_was_not_seen_is_a_line() -> None:
    seen_in_part = Operators(hidden=("a CUDA graph",), unknown=("mylib::gram",))
    assert {line.cells() for line in lines_of(seen_in_part)} == {
        ("-", "unseen", "a CUDA graph", "-", "1"),
        ("-", "unseen", "FLOPs of mylib::gram", "-", "1"),
    }
    assert {line.phase for line in lines_of(None)} == {"unseen"}


# How it reads


def test_calls_are_counted_by_operator_and_dtype_over_modules_and_phases() -> None:
    rows = (
        row("addmm", module="a", count=2), row("mm", module="b", phase="backward"),
        row("mm", "float32"), row("_to_copy", "float32", "bfloat16"),
        row("empty"), row("add", phase="update"),
    )  # fmt: skip
    assert dtype_map.calls(Operators(rows=rows)) == {
        "matmul": {"bfloat16": 3, "float32": 1}, "cast": {"float32 -> bfloat16": 1},
    }  # fmt: skip
    assert dtype_map.calls(None) == {}


def test_modules_that_differ_in_their_numbers_only_share_a_line() -> None:
    blocks = [LINEAR._replace(module=f"layers.{n}.fc") for n in (0, 1, 2, 5, 10)]
    grid = [LINEAR._replace(module=f"stage.{i}.{j}") for i in range(3) for j in range(2)]
    assert [line.split()[0] for line in written([*blocks, *grid])] == [
        "layers.{0-2,5,10}.fc",
        "stage.{0-2}.{0-1}",
    ]


def test_lines_are_in_the_order_of_the_modules_numbers_then_phases_and_the_outside_last() -> None:
    modules = ["-", "a.10", "a.9.x", "a.9"]
    lines = [LINEAR._replace(module=m, calls=i) for i, m in enumerate(modules)]
    lines.append(LINEAR._replace(module="a.9", phase="backward", op="add"))
    assert [line.split()[0] for line in written(lines)] == ["a.9", "a.9", "a.9.x", "a.10", "-"]


def test_a_longer_name_rarely_moves_the_other_lines() -> None:
    other = LINEAR._replace(module="layers.0.fc_2")
    assert written([LINEAR])[0] in written([LINEAR, other])


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
paths = st.lists(names | st.integers(0, 12).map(str) | st.just("01"), min_size=1, max_size=4).map(
    ".".join
)


@given(st.sets(st.tuples(paths, st.sampled_from(["matmul", "add"]), st.integers(1, 3))), names)
def test_whatever_is_written_is_read_back(rows, test) -> None:
    operators = Operators(
        rows=tuple(
            OpRow(f"mine::{op}", "bfloat16", "float32", path, count=n, bytes=1)
            for path, op, n in rows
        )
    )
    lines, title = lines_of(operators), TITLE._replace(test=f"test_it[{test}]")
    text = document({title: section(title, written(lines), "torch 2")})
    assert text.isascii()
    assert {key: found.lines for key, found in parse(text).items()} == {title: lines}


def test_sections_are_in_the_order_of_their_names_with_numbers_counted() -> None:
    titles = [TITLE._replace(test=f"test_it[{n}]") for n in (10, 9)]
    text = document({title: section(title, [], "torch 2") for title in titles})
    assert text.index("test_it[9]") < text.index("test_it[10]")


def test_alignment_order_and_comments_are_not_compared() -> None:
    lines = frozenset({LINEAR, LINEAR._replace(module="fc", calls=2)})
    first, second = written(lines)
    edited = f"test_step on cpu in bfloat16\n\n # by hand\n\t{second}\n   {first}  \n"
    assert parse(edited)[TITLE].lines == lines


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("<<<<<<< HEAD\n", 1, "neither a comment"),
        ("# fine\n  fc  forward  matmul  bfloat16  1\n", 2, "expected a test's name"),
        ("test_a on cpu in bfloat16\n  fc  forward  matmul  bfloat16\n", 2, "MODULE"),
        ("test_a on cpu in bfloat16\n  fc  sideways  matmul  bfloat16  1\n", 2, "MODULE"),
        ("test_a on cpu in bfloat16\n  fc  forward  matmul  bfloat16  x\n", 2, "MODULE"),
        ("test_a on cpu in bfloat16\n\ntest_a on cpu in bfloat16\n", 3, "a second section"),
        ("test_\\x on cpu in bfloat16\n", 1, "neither a comment"),
    ],
)
def test_a_broken_file_is_refused_with_the_line(text, line, says) -> None:
    with pytest.raises(BrokenMapError, match=says) as caught:
        parse(text)
    assert caught.value.line == line


# What it says of a change


def test_nothing_changed_is_no_difference() -> None:
    found, gate = judge(stored(Line("fc", "forward", "matmul", "bfloat16", 1)), row("mm"))
    assert (gate.verdict, gate.value, found.changes, found.stored) == ("pass", 0, (), True)


def test_an_operator_in_another_dtype_fails_with_module_operator_and_both_dtypes() -> None:
    before = stored(Line("fc", "forward", "matmul", "bfloat16", 1))
    found, gate = judge(before, row("mm", "float32"), row("_to_copy", "bfloat16", "float32"))
    assert gate.verdict == "fail"
    assert gate.reason == (
        "matmul in fc ran in float32, where bfloat16 is stored (and 1 more change)"
    )
    assert [" ".join(line.split()) for line in found.changes] == [
        "+ fc forward cast bfloat16 -> float32 1",
        "- fc forward matmul bfloat16 1",
        "+ fc forward matmul float32 1",
    ]


@pytest.mark.parametrize(
    ("before", "rows", "says"),
    [
        ([LINEAR], [], "matmul in layers.0.fc is gone, which ran in bfloat16"),
        ([], [row("exp", phase="backward")], "exp in fc (backward) is new, in bfloat16"),
        ([Line("-", "forward", "exp", "float32", 2)], [row("exp", "float32", module=None)],
         "exp outside of modules has 1 call, where 2 calls are stored"),
        ([Line("-", "unseen", "a CUDA graph", "-", 1)], [], "a CUDA graph is seen again"),
    ],
)  # fmt: skip
def test_other_changes_are_told_in_a_sentence(before, rows, says) -> None:
    assert judge(stored(*before), *rows)[1].reason == says


def test_a_region_that_is_no_longer_seen_comes_first() -> None:
    _, gate = judge(stored(LINEAR), row("exp"), hidden=("a Triton kernel",))
    assert gate.reason == "a Triton kernel was not seen (and 2 more changes)"


def test_changes_of_like_modules_are_one_line_each() -> None:
    before = frozenset(LINEAR._replace(module=f"layers.{n}.fc") for n in range(12))
    after = frozenset(line._replace(dtype="float32") for line in before)
    assert [line.split()[:2] for line in diff(before, after)] == [
        ["-", "layers.{0-11}.fc"],
        ["+", "layers.{0-11}.fc"],
    ]


def test_a_test_without_a_map_fails_and_is_told_how_to_make_one() -> None:
    _, gate = judge({}, row("mm"))
    assert gate.verdict == "fail"
    assert "no map of this test on cpu in bfloat16: create it with --amp-snapshot=update" in (
        gate.reason
    )


def test_maps_of_another_dtype_or_device_are_not_compared_with_but_named() -> None:
    others = stored(title=TITLE._replace(device_type="cuda", dtype="float16"))
    assert "(there is one for cuda in float16)" in judge(others, row("mm"))[1].reason


def test_an_update_passes_and_says_what_it_changed() -> None:
    assert judge({}, row("mm"), update=True)[1].verdict == "pass"
    found, gate = judge(stored(LINEAR), row("mm"), update=True)
    assert (gate.verdict, len(found.changes)) == ("pass", 2)
    assert gate.reason.startswith("__amp__/test_x.txt is updated: matmul in ")
