"""Runs everything that `make test` runs, and ends with one line: `N passed, N failed`.

Lint, types and import rules first, then unit tests, then integration tests, each in the environment whose packages
they test, and at last whole releases. Exits 1 if anything failed or if no test ran.
"""

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
VENVS = Path(os.environ.get("SLIPWAY_VENVS") or ROOT / ".venvs").absolute()
REPORTS = ROOT / "build" / "test-reports"

EXIT_NO_TESTS = 5
"""What pytest says when it has nothing to run."""

MODEL = {"unit": ("tests/unit/training", "tests/unit/compression"), "integration": ("tests/integration/model",)}
SERVE = {"unit": ("tests/unit/evaluation",), "integration": ("tests/integration/serve",)}
CONTROL = {
    "unit": ("tests/unit", "tests/contracts", "tests/architecture", "tests/dags"),
    "integration": ("tests/integration",),
    "containers": ("tests/integration/docker",),
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
    may_be_left_out: bool = False
    """A machine may lack what all of these tests need; pytest's last lines name them then."""


SUITES = (
    Suite("control", "unit", CONTROL["unit"], (*MODEL["unit"], *SERVE["unit"])),
    Suite("model", "unit", MODEL["unit"]),
    Suite("serve", "unit", SERVE["unit"]),
    Suite(
        "control",
        "integration",
        CONTROL["integration"],
        (*MODEL["integration"], *SERVE["integration"], *CONTROL["containers"]),
        side_by_side=2,
    ),
    Suite("model", "integration", MODEL["integration"]),
    Suite("serve", "integration", SERVE["integration"]),
    Suite("control", "containers", CONTROL["containers"], may_be_left_out=True),
    Suite("control", "e2e", CONTROL["e2e"]),
)


def main() -> int:
    REPORTS.mkdir(parents=True, exist_ok=True)
    failed = lint()
    if sys.argv[1:] == ["--lint"]:
        return 1 if failed else 0
    passed = 0
    for suite in SUITES:
        counted = run(suite)
        passed, failed = passed + counted[0], failed + counted[1]
    print(f"{passed} passed, {failed} failed", flush=True)
    return 0 if passed and not failed else 1


def lint() -> int:
    """How many of the checks of the source failed."""
    tools = VENVS / "control" / "bin"
    import_path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"}
    return sum(
        (
            _check("ruff check", [str(tools / "ruff"), "check", "."]),
            _check("ruff format", [str(tools / "ruff"), "format", "--check", "."]),
            _check("mypy", [str(tools / "mypy")]),
            _check("import rules", [str(tools / "lint-imports")], import_path),
        )
    )


def run(suite: Suite) -> tuple[int, int]:
    """How many tests passed, and how many failed. A suite that breaks counts as one failure."""
    name = f"{suite.level} tests of the {suite.environment} environment"
    report = REPORTS / f"{suite.environment}-{suite.level}.xml"
    report.unlink(missing_ok=True)
    python = VENVS / suite.environment / "bin" / "python"
    ignored = [f"--ignore={path}" for path in suite.left_to_others]
    spread = ["-n", str(suite.side_by_side), "--dist", "loadfile"] if suite.side_by_side > 1 else []
    command = [str(python), "-m", "pytest", "-q", f"--junitxml={report}", *spread, *ignored, *suite.paths]
    code = _run(name, command)
    if not report.exists():
        return 0, 1
    passed, failed = count(report)
    fine = (0, EXIT_NO_TESTS) if suite.may_be_left_out else (0,)
    return passed, failed or int(code not in fine)


def count(report: Path) -> tuple[int, int]:
    """Passed and failed tests of a report in JUnit's form. A skipped test counts as failed: nothing here may skip."""
    total = failed = 0
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        total += int(suite.get("tests", 0))
        failed += sum(int(suite.get(kind, 0)) for kind in ("failures", "errors", "skipped"))
    return max(0, total - failed), failed


def _check(name: str, command: list[str], variables: dict[str, str] | None = None) -> int:
    return int(_run(name, command, variables) != 0)


def _run(name: str, command: list[str], variables: dict[str, str] | None = None) -> int:
    print(f"\n=== {name}", flush=True)
    started = time.monotonic()
    environment = {**os.environ, **(variables or {})}
    code = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, env=environment, check=False).returncode
    print(f"=== {name}: {'ok' if code == 0 else f'exit code {code}'} ({time.monotonic() - started:.0f} s)", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
