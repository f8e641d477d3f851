"""Faults that people report, and whether pytest-amp finds them, and healthy twins that look alike.

Each file in faults/ and twins/ is one amp test. It runs in a pytest of its own, without timing. A
fault is found if one of the codes in its EXPECT is reported (or, where it names the loss gate, if
that gate fails), and placed if such a finding points at a line that is marked `# <- here`. A twin
has to be free of errors and of warnings. `python -m benchmarks.planted 03 24` runs those two only.
The cases in unseen/ were written without a look at the source, and before any of them was run:
`--set unseen` runs those instead.
"""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).parent
MARK = "# <- here"


@dataclass
class Outcome:
    case: Path
    expected: tuple[str, ...]
    verdict: str
    failed_gates: list[str]
    findings: list[dict]

    def codes(self, severity):
        return sorted({each["code"] for each in self.findings if each["severity"] == severity})

    @property
    def found(self):
        codes = {each["code"] for each in self.findings}
        gate = "loss gate" in self.expected and "loss_diff" in self.failed_gates
        return gate or bool(codes & set(self.expected))

    @property
    def placed(self):
        marked = marked_in(self.case.read_text("utf-8"))
        mine = [each for each in self.findings if each["code"] in self.expected]
        return any(self.line_of(each) in marked for each in mine)

    def line_of(self, finding):
        """The line in the case's own file; None if the finding is elsewhere or nowhere."""
        match = re.search(r"([^/\\\s]+\.py):(\d+)", finding["location"] or "")
        return int(match[2]) if match and match[1] == self.case.name else None

    @property
    def false_error(self):
        return self.verdict not in ("pass", "inconclusive") or bool(self.codes("error"))


def marked_in(source):
    """The lines that are marked; a mark stands for the whole of a simple statement."""
    marked = {n for n, line in enumerate(source.splitlines(), 1) if line.endswith(MARK)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and not hasattr(node, "body"):
            lines = set(range(node.lineno, node.end_lineno + 1))
            marked |= lines if lines & marked else set()
    return marked


def expected_of(case):
    for node in ast.parse(case.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "EXPECT":
            return ast.literal_eval(node.value)
    raise ValueError(f"{case} has no EXPECT")


def run(case):
    with tempfile.TemporaryDirectory() as directory:
        report, empty = Path(directory, "amp.json"), Path(directory, "pytest.ini")
        empty.write_text("[pytest]\n", "utf-8")
        options = ["-c", str(empty), "--rootdir", str(case.parent), "-p", "no:cacheprovider"]
        options += ["--amp-static", "--amp-device=cpu", f"--amp-json={report}"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", str(case), *options],
            cwd=directory,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if not report.exists():
            raise RuntimeError(f"{case} made no report:\n{done.stdout}{done.stderr}")
        (test,) = json.loads(report.read_text("utf-8"))["tests"]
    failed_gates = [gate["name"] for gate in test["gates"] if gate["verdict"] == "fail"]
    findings = [each for each in test["findings"] if not each["suppressed"]]
    return Outcome(case, expected_of(case), test["verdict"], failed_gates, findings)


def row(outcome):
    found = [*outcome.codes("error"), *(code + "w" for code in outcome.codes("warning"))]
    gates = "+".join(outcome.failed_gates)
    cells = [
        f"{outcome.case.parent.name[:-1]:5} {outcome.case.stem:30}",
        f"{' '.join(outcome.expected) or '-':26}",
        f"{' '.join(found) or '-':32}",
        f"{outcome.verdict + (f' ({gates})' if gates else ''):18}",
        f"{'yes' if outcome.found else 'NO':5}  {'yes' if outcome.placed else 'NO'}"
        if outcome.expected
        else "",
    ]
    return "  ".join(cells).rstrip()


def table(outcomes):
    head = f"{'case':36}  {'expected':26}  {'found (w: warning)':32}  {'verdict':18}  found place"
    lines = [f"torch {torch.__version__}, CPU, --amp-static", "", head, "-" * len(head)]
    lines += [row(each) for each in outcomes]
    faults = [each for each in outcomes if each.expected]
    twins = [each for each in outcomes if not each.expected]
    placed = sum(each.found and each.placed for each in faults)
    warned = sum(bool(each.codes("warning")) for each in twins)
    return [
        *lines,
        "",
        f"faults found                {sum(each.found for each in faults)} of {len(faults)}",
        f"faults found and placed     {placed} of {len(faults)}",
        f"twins with a false error    {sum(each.false_error for each in twins)} of {len(twins)}",
        f"twins with a false warning  {warned} of {len(twins)}",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of the names of cases (default: all)")
    parser.add_argument("--set", default=".", help="a folder of cases beside this file: unseen")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    parser.add_argument("--details", action="store_true", help="print every finding, with its line")
    arguments = parser.parse_args()
    folder = HERE / arguments.set
    cases = sorted(folder.glob("faults/*.py")) + sorted(folder.glob("twins/*.py"))
    if arguments.names:
        cases = [case for case in cases if any(name in case.stem for name in arguments.names)]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = list(pool.map(run, cases))
    text = "\n".join(table(outcomes)) + "\n"
    print(text, end="")
    for outcome in outcomes if arguments.details else ():
        print(f"\n{outcome.case.parent.name}/{outcome.case.stem}: {outcome.verdict}")
        for each in outcome.findings:
            print(f"  {each['severity']} {each['code']} at {each['location']}: {each['message']}")
    if arguments.write:
        arguments.write.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
