"""Runs everything that `make test` runs, and ends with the names of what failed and one line: `N passed, N failed`.

Lint, types, import rules and unit tests first, then integration tests, each in the environment whose packages they
test, and at last whole releases. Suites that keep one core busy run side by side, and are heard of when they are over.
`--lint` stops after the source's checks, `--drills` runs the drills instead of the tests. Exits 1 if anything failed or
if no test ran.
"""

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
VENVS = Path(os.environ.get("SLIPWAY_VENVS") or ROOT / ".venvs").absolute()
REPORTS = ROOT / "build" / "test-reports"

EXIT_NO_TESTS = 5
"""What pytest says when it has nothing to run."""
LANES = 2
"""Suites of a stage that run at the same time."""

MODEL = {"unit": ("tests/unit/training", "tests/unit/compression"), "integration": ("tests/integration/model",)}
SERVE = {"unit": ("tests/unit/evaluation",), "integration": ("tests/integration/serve",)}
CONTROL = {
    "unit": ("tests/unit", "tests/contracts", "tests/architecture", "tests/dags"),
    "integration": ("tests/integration",),
    "containers": ("tests/integration/docker",),
    "compose": tuple(
        str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("tests/integration/docker/test_compose*.py"))
    ),
    "e2e": ("tests/e2e",),
}


@dataclass(frozen=True)
class Suite:
    """One run of pytest in one environment."""

    environment: str
    level: str
    paths: tuple[str, ...]
    left_to_others: tuple[str, ...] = ()
    side_by_side: int = 1
    """Files of tests that run at the same time: where most of the time is spent waiting."""
    marker: str = ""
    """Tests with this marker alone; pyproject.toml says which are left out otherwise."""
    may_be_left_out: bool = False
    """A machine may lack what all of these tests need; pytest's last lines name them then."""


DRILLS = (
    (Suite("control", "drills", CONTROL["containers"], marker="drill", may_be_left_out=True),),
    (Suite("model", "drills", MODEL["integration"], marker="drill"),),
    (
        Suite(
            "control",
            "drills of the fleet",
            CONTROL["integration"],
            (*MODEL["integration"], *SERVE["integration"], *CONTROL["containers"]),
            marker="drill",
        ),
    ),
    (Suite("control", "drills of the whole stack", CONTROL["e2e"], marker="drill"),),
)
"""Faults on the stack in docker compose, on nodes of a training, on the fleet under load and on a rollout's helpers,
and rarer combinations of a training's settings, too long for every change: `make drills`."""

STAGES = (
    (
        Suite("control", "unit", CONTROL["unit"], (*MODEL["unit"], *SERVE["unit"]), side_by_side=2),
        Suite("model", "unit", MODEL["unit"]),
        Suite("serve", "unit", SERVE["unit"]),
    ),
    (
        Suite(
            "control",
            "integration",
            CONTROL["integration"],
            (*MODEL["integration"], *SERVE["integration"], *CONTROL["containers"]),
            side_by_side=2,
        ),
    ),
    (
        Suite("model", "integration", MODEL["integration"], side_by_side=2),
        Suite("serve", "integration", SERVE["integration"]),
    ),
    (
        Suite("control", "compose", CONTROL["compose"], may_be_left_out=True),
        Suite("control", "containers", CONTROL["containers"], CONTROL["compose"], may_be_left_out=True),
    ),
    (Suite("control", "e2e", CONTROL["e2e"]),),
)
"""One after the other; the suites of one stage side by side. What asks how long something takes is alone in its own."""

Outcome = tuple[int, list[str]]
"""How many passed, and the names of those that failed."""


def main() -> int:
    REPORTS.mkdir(parents=True, exist_ok=True)
    if sys.argv[1:] == ["--lint"]:
        return 1 if lint()[1] else 0
    drills = sys.argv[1:] == ["--drills"]
    stages = [[partial(run, suite) for suite in stage] for stage in (DRILLS if drills else STAGES)]
    if not drills:
        stages[0].insert(0, lint)
    found = [outcome for stage in stages for outcome in side_by_side(stage)]
    passed, failed = sum(passed for passed, _ in found), [name for _, names in found for name in names]
    print(*(f"failed: {name}" for name in failed), f"{passed} passed, {len(failed)} failed", sep="\n", flush=True)
    return 0 if passed and not failed else 1


def side_by_side(jobs: Sequence[Callable[..., Outcome]]) -> list[Outcome]:
    """The outcomes of all, in the same order. A job that has company is to keep what it says until it is over."""
    with ThreadPoolExecutor(LANES) as pool:
        futures = [pool.submit(job, held=len(jobs) > 1) for job in jobs]
        return [future.result() for future in futures]


def lint(*, held: bool = False) -> Outcome:
    """The checks of the source that failed; none counts as a test."""
    tools = VENVS / "control" / "bin"
    checks = {
        "ruff check": [str(tools / "ruff"), "check", "."],
        "ruff format": [str(tools / "ruff"), "format", "--check", "."],
        "mypy": [str(tools / "mypy")],
        "import rules": [str(tools / "lint-imports")],
    }
    import_path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"}
    failed = [name for name, command in checks.items() if _run(name, command, import_path, held=held) != 0]
    return 0, failed


def run(suite: Suite, *, held: bool = False) -> Outcome:
    """What came of the suite's tests. A suite that breaks counts as one failure."""
    name = f"{suite.level} tests of the {suite.environment} environment"
    report = REPORTS / f"{suite.environment}-{suite.level}.xml"
    report.unlink(missing_ok=True)
    python = VENVS / suite.environment / "bin" / "python"
    ignored = [f"--ignore={path}" for path in suite.left_to_others]
    spread = (
        ["-n", str(suite.side_by_side), "--dist", "loadfile", "--no-loadscope-reorder"]
        if suite.side_by_side > 1
        else []
    )
    chosen = ["-m", suite.marker] if suite.marker else []
    command = [str(python), "-m", "pytest", "-q", f"--junitxml={report}", *spread, *chosen, *ignored, *suite.paths]
    code = _run(name, command, held=held)
    if not report.exists():
        return 0, [name]
    passed, failed = outcomes(report)
    fine = (0, EXIT_NO_TESTS) if suite.may_be_left_out else (0,)
    return passed, failed or ([] if code in fine else [name])


def outcomes(report: Path) -> Outcome:
    """How many tests of a report in JUnit's form passed, and which failed. A skipped one failed: nothing may skip."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [case for case in cases if any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))]
    return len(cases) - len(failed), [f"{case.get('classname')}.{case.get('name')}" for case in failed]


def _run(name: str, command: list[str], variables: dict[str, str] | None = None, *, held: bool) -> int:
    """The exit code; with `held`, what the command says is printed at its end."""
    print(f"\n=== {name}", flush=True)
    started = time.monotonic()
    environment = {**os.environ, **(variables or {})}
    # Tests start hundreds of processes that import torch, vLLM or Airflow: compiling them each time costs seconds.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if held else None,
        stderr=subprocess.STDOUT if held else None,
        env=environment,
        text=True,
        check=False,
    )
    said = f"\n=== {name} said:\n{done.stdout}" if done.stdout else ""
    verdict = "ok" if done.returncode == 0 else f"exit code {done.returncode}"
    print(f"{said}=== {name}: {verdict} ({time.monotonic() - started:.0f} s)", flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
