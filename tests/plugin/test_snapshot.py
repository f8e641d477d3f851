"""--amp-snapshot: the dtype map kept beside the test file, as a user meets it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.project import QUICK, STEP, gate, measure

TWO = (
    STEP
    + """
@pytest.mark.amp
def test_other(model, optimizer, batch):
    return model(batch[0]).exp().mean()
"""
)
IN_FLOAT32 = """
import pytest, torch
import torch.nn.functional as F

@pytest.mark.amp
def test_step(model, optimizer, batch):
    with torch.autocast("cpu", enabled=False):
        return F.cross_entropy(model(batch[0]), batch[1])
"""
PARAMETRIZED = """
import pytest
import torch.nn.functional as F

@pytest.mark.parametrize("case", {cases!r})
@pytest.mark.amp
def test_step(model, optimizer, batch, case):
    return F.cross_entropy(model(batch[0]), batch[1])
"""


def run(project: pytest.Pytester, mode: str, *arguments: str) -> pytest.RunResult:
    return project.runpytest(f"--amp-snapshot={mode}", *QUICK, *arguments)


def kept(project: pytest.Pytester, stem: str = "test_it") -> Path:
    return project.path / "__amp__" / f"{stem}.txt"


def names_in(file: Path) -> list[str]:
    """The names of the sections."""
    return [
        line.rpartition(" on ")[0]
        for line in file.read_text().splitlines()
        if line and line[0] not in " #"
    ]


def section_of(file: Path, test: str) -> str:
    start = file.read_text().index(f"{test} on ")
    return file.read_text()[start:].partition("\n\n")[0]


def test_a_test_without_a_map_fails_and_says_how_to_create_it(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    result = project.runpytest("--amp-snapshot", *QUICK)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "compare:dtype_map: __amp__/test_it.txt has no map of this test on cpu in bfloat16: *",
            "* create it with --amp-snapshot=update, and commit it",
        ]
    )
    assert not kept(project).exists()


def test_update_writes_a_file_that_can_be_read_by_anyone(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    result = run(project, "update")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*= pytest-amp: dtype maps =*", "__amp__/test_it.txt: 1 created"])
    header, text = kept(project).read_text().split("\n\n")
    assert all(line.startswith("# ") for line in header.splitlines())
    title, torch, *lines = text.splitlines()
    assert title == "test_step on cpu in bfloat16"
    assert torch.startswith("  # torch ")
    assert [line.split("  ")[1:2] + line.split()[1:] for line in lines] == [
        ["Linear", "forward", "cast", "float32", "->", "bfloat16", "3"],
        ["Linear", "forward", "matmul", "bfloat16", "1"],
        ["Linear", "backward", "cast", "bfloat16", "->", "float32", "2"],
        ["Linear", "backward", "matmul", "bfloat16", "1"],
        ["Linear", "backward", "sum", "bfloat16", "1"],
        ["-", "forward", "_log_softmax", "float32", "1"],
        ["-", "forward", "cast", "bfloat16", "->", "float32", "1"],
        ["-", "forward", "nll_loss_forward", "float32", "1"],
        ["-", "backward", "_log_softmax_backward_data", "float32", "1"],
        ["-", "backward", "cast", "float32", "->", "bfloat16", "1"],
        ["-", "backward", "nll_loss_backward", "float32", "1"],
    ]


@pytest.mark.slow
def test_nothing_changes_over_four_runs(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        import itertools, random, pytest, torch
        from torch import nn

        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.norm, self.drop = nn.LayerNorm(8), nn.Dropout(0.5)
                self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
                self.mlp = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))

            def forward(self, x):
                y = self.norm(x)
                return x + self.drop(self.attention(y, y, y, need_weights=False)[0]) + self.mlp(x)

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8)
                self.blocks = nn.Sequential(*(Block() for _ in range(3)))
                self.rnn, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 4)

            def forward(self, x):
                x = self.blocks(self.norm(self.conv(x)).transpose(1, 2))
                return self.head(self.rnn(x)[0][:, -1])

        @pytest.mark.amp(ignore={"AMP": "not what this is about"}, max_loss_diff=None)
        def test_net(amp_benchmark):
            def setup(arm):
                torch.set_num_threads(random.SystemRandom().choice([1, 2]))
                net = Net()
                optimizer = torch.optim.AdamW(net.parameters())
                def step():
                    with arm.autocast():
                        loss = net(torch.randn(2, 3, 8)).square().mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    return loss
                return step
            amp_benchmark(setup)
        """
    )
    run(project, "update").assert_outcomes(passed=1)
    before = kept(project).read_bytes()
    for _ in range(4):
        run(project, "compare").assert_outcomes(passed=1)
    assert run(project, "update").ret == 0
    assert kept(project).read_bytes() == before
    assert "  blocks.{0-2}.mlp.{0,2}  forward         matmul" in kept(project).read_text()


def test_an_operator_in_another_dtype_fails_with_a_diff(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    run(project, "update")
    project.makepyfile(test_it=IN_FLOAT32)
    result, reports = measure(project, "--amp-snapshot=compare", "--amp-ignore=AMP101")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "compare:dtype_map: matmul in Linear ran in float32, where bfloat16 is stored*",
            "  dtype map, - as stored in __amp__/test_it.txt, + as it ran",
            "  - Linear  forward   matmul  bfloat16             1",
            "  + Linear  forward   matmul  float32              1",
            "  look at the map above: *--amp-snapshot=update stores it",
        ]
    )
    report = reports["test_step"]
    assert report["verdict"] == "fail"
    assert gate(report, "compare:dtype_map")["verdict"] == "fail"
    assert gate(report, "compare:dtype_map")["value"] == len(report["dtype_map"]["changes"])
    accepted = run(project, "update", "--amp-ignore=AMP101")
    accepted.stdout.fnmatch_lines(["__amp__/test_it.txt: 1 updated"])
    run(project, "compare", "--amp-ignore=AMP101").assert_outcomes(passed=1)


def test_a_change_that_is_only_of_text_is_none(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    run(project, "update")
    text = kept(project).read_text().replace("# torch", "# ours, with torch").replace("   ", "  ")
    kept(project).write_bytes(text.replace("\n", "\r\n").encode())
    run(project, "compare").assert_outcomes(passed=1)
    run(project, "update").assert_outcomes(passed=1)
    assert "# ours" in kept(project).read_text()  # and nothing is written for it


def test_an_update_leaves_the_other_tests_of_the_file_as_they_stand(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=TWO)
    run(project, "update")
    kept(project).write_text(kept(project).read_text().replace("# torch", "# reviewed"))
    other = section_of(kept(project), "test_other")
    project.makepyfile(
        test_it=TWO.replace("model(batch[0]), batch", "model(batch[0]).exp(), batch")
    )
    run(project, "update").stdout.fnmatch_lines(["__amp__/test_it.txt: 1 updated"])
    assert section_of(kept(project), "test_other") == other
    assert "# torch" in section_of(kept(project), "test_step")


@pytest.mark.parametrize(
    "selection",
    [("-k", "other"), ("test_it.py::test_other",), ("--deselect=test_it.py::test_step",)],
)
def test_an_update_of_some_tests_keeps_the_maps_of_those_that_did_not_run(
    project: pytest.Pytester, selection: tuple[str, ...]
) -> None:
    project.makepyfile(test_it=TWO)
    run(project, "update")
    before = kept(project).read_text()
    result = run(project, "update", *selection)
    result.assert_outcomes(passed=1, deselected=0 if "::test_o" in selection[0] else 1)
    assert kept(project).read_text() == before
    run(project, "compare", *selection).stdout.no_fnmatch_line("*no test for*")


def test_a_run_of_the_last_failures_removes_nothing(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=TWO)
    run(project, "update")
    project.makepyfile(test_it=TWO.replace(".exp()", ".exp().exp()"))
    run(project, "compare").assert_outcomes(passed=1, failed=1)
    run(project, "update", "--lf").assert_outcomes(passed=1)
    assert names_in(kept(project)) == ["test_other", "test_step"]


def test_the_map_of_a_test_that_is_gone_is_reported_and_removed_by_an_update(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=TWO)
    run(project, "update")
    project.makepyfile(test_it=STEP)
    result = run(project, "compare", "--amp-strict")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["__amp__/test_it.txt: no test for test_other on cpu in bfloat16 (--amp-snapshot=update*"]
    )
    run(project, "update").stdout.fnmatch_lines(["__amp__/test_it.txt: 1 removed"])
    assert names_in(kept(project)) == ["test_step"]


def test_a_file_whose_tests_no_longer_measure_goes_with_its_last_map(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=STEP)
    run(project, "update")
    project.makepyfile(test_it="def test_step(): pass")
    run(project, "update").assert_outcomes(passed=1)
    assert not kept(project).exists()


def test_the_maps_of_a_file_that_fails_to_import_stay(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    run(project, "update")
    before = kept(project).read_text()
    project.makepyfile(test_it="import not_there")
    run(project, "update").assert_outcomes(errors=1)
    assert kept(project).read_text() == before


def test_maps_without_a_test_file_are_reported(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP, test_old=STEP)
    run(project, "update")
    (project.path / "test_old.py").unlink()
    result = run(project, "compare")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["__amp__/test_old.txt: test_old.py no longer exists: *"])
    assert kept(project, "test_old").exists()


def test_maps_are_kept_by_device_and_dtype(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    run(project, "update")
    bfloat16 = section_of(kept(project), "test_step")
    missing = run(project, "compare", "--amp-dtype=float16")
    missing.stdout.fnmatch_lines(["*on cpu in float16 (there is one for cpu in bfloat16): *"])
    run(project, "update", "--amp-dtype=float16")
    assert names_in(kept(project)) == ["test_step", "test_step"]
    assert bfloat16 in kept(project).read_text()
    run(project, "compare").assert_outcomes(passed=1)


def test_odd_parameters_have_maps_of_their_own(project: pytest.Pytester) -> None:
    cases = ["a b", "x on cpu in float16", "\n# [", "\N{SNOWMAN}", "::/", " ", "\\"]
    project.makepyfile(test_it=PARAMETRIZED.format(cases=cases))
    run(project, "update").assert_outcomes(passed=len(cases))
    assert len(set(names_in(kept(project)))) == len(cases)
    assert kept(project).read_text().isascii()
    result = run(project, "compare")
    result.assert_outcomes(passed=len(cases))
    result.stdout.no_fnmatch_line("*no test for*")


def test_each_directory_keeps_its_own_and_methods_are_named_with_their_class(
    project: pytest.Pytester,
) -> None:
    for name in ("one", "two"):
        (project.path / name).mkdir()
        (project.path / name / f"test_{name}.py").write_text(
            "import pytest\n@pytest.mark.amp\nclass TestIt:\n"
            "    def test_step(self, model, optimizer, batch):\n"
            "        return model(batch[0]).square().mean()\n"
        )
    run(project, "update", "one", "two").assert_outcomes(passed=2)
    for name in ("one", "two"):
        assert names_in(project.path / name / "__amp__" / f"test_{name}.txt") == [
            "TestIt::test_step"
        ]


def test_it_holds_in_form_2_and_where_the_gates_are_left_to_the_user(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(
        test_it="""
        def test_setup(amp_benchmark, setup):
            result = amp_benchmark(setup, check=False)
            assert result.dtype_map.lines
            result.check()
        """
    )
    run(project, "compare").assert_outcomes(failed=1)
    run(project, "update").assert_outcomes(passed=1)
    run(project, "compare").assert_outcomes(passed=1)


@pytest.mark.slow
def test_xdist_workers_lose_nothing_of_each_others(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=PARAMETRIZED.format(cases=list("abcdef")))
    result = project.runpytest_subprocess("-n2", "--amp-snapshot=update", *QUICK)
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["__amp__/test_it.txt: 6 created"])
    assert names_in(kept(project)) == [f"test_step[{case}]" for case in "abcdef"]
    project.makepyfile(test_it=PARAMETRIZED.format(cases=list("abc")))
    # loadgroup changes the node ids of the tests
    result = project.runpytest_subprocess(
        "-n1", "--dist=loadgroup", "--amp-snapshot=compare", *QUICK
    )
    result.assert_outcomes(passed=3)
    assert sum("no test for test_step[" in line for line in result.outlines) == 3


@pytest.mark.parametrize("mode", ["compare", "update"])
def test_a_broken_file_is_told_with_its_line_and_left_alone(
    project: pytest.Pytester, mode: str
) -> None:
    project.makepyfile(test_it=STEP)
    run(project, "update")
    broken = kept(project).read_text().replace("test_step on", "<<<<<<< HEAD\ntest_step on")
    kept(project).write_text(broken)
    result = run(project, mode)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["__amp__/test_it.txt:4: '<<<<<<< HEAD' is neither *"])
    assert kept(project).read_text() == broken


def test_an_update_that_cannot_be_written_is_not_green(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    (project.path / "__amp__").write_text("in the way")
    result = run(project, "update")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stderr.fnmatch_lines(["pytest-amp: --amp-snapshot=update: __amp__/test_it.txt: *"])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_directory_is_not_green_and_comparing_needs_no_more(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=STEP)
    run(project, "update")
    project.makepyfile(test_it=TWO)
    kept(project).parent.chmod(0o500)
    try:
        assert run(project, "update").ret == pytest.ExitCode.INTERNAL_ERROR
        run(project, "compare").assert_outcomes(passed=1, failed=1)
    finally:
        kept(project).parent.chmod(0o700)


def test_a_file_is_replaced_whole_or_not_at_all(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(test_it=STEP)
    run(project, "update")
    before = kept(project).read_text()
    project.makepyfile(test_it=TWO)

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    assert run(project, "update").ret == pytest.ExitCode.INTERNAL_ERROR
    assert [file.read_text() for file in kept(project).parent.iterdir()] == [before]


def test_of_several_ranks_the_first_one_keeps_the_map(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    project.makepyfile(test_it=STEP)
    run(project, "compare").assert_outcomes(passed=1)
    run(project, "update").assert_outcomes(passed=1)
    assert not kept(project).exists()


def test_it_may_stand_in_the_ini_file_and_the_command_line_beats_it(
    project: pytest.Pytester,
) -> None:
    project.makeini("[pytest]\namp_snapshot = compare")
    project.makepyfile(test_it=STEP)
    project.runpytest(*QUICK).assert_outcomes(failed=1)
    run(project, "off").assert_outcomes(passed=1)
    run(project, "update").assert_outcomes(passed=1)
    project.runpytest(*QUICK).assert_outcomes(passed=1)


def test_a_path_after_the_bare_option_is_told_from_a_mode(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP)
    result = project.runpytest("--amp-snapshot", "test_it.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*before a path write --amp-snapshot=compare*"])


def test_it_is_no_keyword_of_the_marker(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=STEP.replace("mark.amp", "mark.amp(snapshot='update')"))
    project.runpytest(*QUICK).assert_outcomes(errors=1)


def test_without_the_option_nothing_is_compared_and_nothing_is_written(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_it=STEP)
    result, reports = measure(project)
    result.assert_outcomes(passed=1)
    assert reports["test_step"]["dtype_map"] is None
    assert not kept(project).exists()
