"""What `make test` runs, and how the sum at its end is counted."""

import sys
import threading
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

SETUP = Path(__file__).resolve().parents[3] / "infra" / "setup"
REPORT = """
<testsuites><testsuite>
    <testcase classname="tests.x" name="test_a"/>
    <testcase classname="tests.x" name="test_b"><failure/></testcase>
    <testcase classname="tests.x" name="test_c"><error/></testcase>
    <testcase classname="tests.x" name="test_d"><skipped/></testcase>
</testsuite></testsuites>
"""


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SETUP))
    import check

    return check


def test_failures_errors_and_skips_count_as_failed_and_are_named(tmp_path: Path, check: ModuleType) -> None:
    """Nothing may hide behind a skip."""
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    assert check.outcomes(report) == (1, ["tests.x.test_b", "tests.x.test_c", "tests.x.test_d"])


def test_a_report_without_tests_has_nothing_passed(tmp_path: Path, check: ModuleType) -> None:
    """As one of a suite whose tests were all left out."""
    report = tmp_path / "report.xml"
    report.write_text("<testsuites><testsuite/></testsuites>")
    assert check.outcomes(report) == (0, [])


def test_every_test_file_runs_in_one_suite(check: ModuleType) -> None:
    """None is forgotten, none runs twice."""
    for path in (SETUP.parents[1] / "tests").rglob("test_*.py"):
        name = path.relative_to(SETUP.parents[1])
        suites = [
            suite
            for stage in check.STAGES
            for suite in stage
            if any(name.is_relative_to(inside) for inside in suite.paths)
            and not any(name.is_relative_to(outside) for outside in suite.left_to_others)
        ]
        assert len(suites) == 1, f"{name} runs in {suites}"


@pytest.mark.parametrize(
    ("stages", "faults", "last_lines", "code"),
    [
        ([[(5, [])], [(7, [])]], [], ["12 passed, 0 failed"], 0),
        ([[(5, []), (7, ["a"])]], [], ["failed: a", "12 passed, 1 failed"], 1),
        ([[(5, ["a"])]], ["mypy"], ["failed: mypy", "failed: a", "5 passed, 2 failed"], 1),
        ([[(0, [])]], [], ["0 passed, 0 failed"], 1),
    ],
)
def test_the_last_lines_are_what_failed_and_the_sum_and_nothing_run_is_no_success(
    stages: list[list[tuple[int, list[str]]]],
    faults: list[str],
    last_lines: list[str],
    code: int,
    check: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Of all suites, with the faults that lint finds."""
    monkeypatch.setattr(check, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(check, "STAGES", stages)
    monkeypatch.setattr(check, "lint", lambda *, held: (0, faults))
    monkeypatch.setattr(check, "run", lambda suite, *, held: suite)
    monkeypatch.setattr(check.sys, "argv", ["check.py"])
    assert check.main() == code
    assert capsys.readouterr().out.splitlines() == last_lines


def test_a_suite_that_collects_nothing_is_a_failure(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As when its folder is gone or every test of it was left out."""
    monkeypatch.setattr(check, "REPORTS", tmp_path)
    assert check.run(check.Suite("control", "unit", (str(tmp_path),))) == (0, ["unit tests of the control environment"])


def test_what_runs_side_by_side_speaks_one_after_the_other(
    check: ModuleType, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each says all of it at its end; compiled modules are kept for the next process, whatever the caller has set."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    both = threading.Barrier(2, timeout=60)

    def job(name: str, *, held: bool) -> tuple[int, list[str]]:
        both.wait()
        code = f"import sys; print('{name} 1\\n{name} 2', sys.flags.dont_write_bytecode)"
        return check._run(name, [sys.executable, "-c", code], held=held), [name]

    assert check.side_by_side([partial(job, "a"), partial(job, "b")]) == [(0, ["a"]), (0, ["b"])]
    lines = capfd.readouterr().out.splitlines()
    for name in ("a", "b"):
        begin = lines.index(f"=== {name} said:")
        assert lines[begin + 1 : begin + 3] == [f"{name} 1", f"{name} 2 0"]
        assert lines[begin + 3].startswith(f"=== {name}: ok")
