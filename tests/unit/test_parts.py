"""Tests that need a part which the machine lacks: left out by name, or demanded."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.settings import ROOT

SAMPLE = """
import pytest

@pytest.mark.needs("data")
def test_with_data(): pass

def test_without(): pass
"""


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A test file with one test that needs data."""
    path = tmp_path / "test_sample.py"
    path.write_text(SAMPLE)
    return path


def run(sample: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """pytest with this project's conftest, as a user runs it."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", str(sample), *options]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **variables}
    return subprocess.run(command, cwd=sample.parent, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_a_test_whose_part_is_missing_is_left_out_by_name(sample: Path, options: tuple[str, ...]) -> None:
    """With the reason; also where the tests run in several processes."""
    done = run(sample, *options)

    assert done.returncode == 0, done.stdout
    assert "left out because SLIPWAY_TEST_DATA names no folder with banking77-train.jsonl" in done.stdout
    assert "left out: test_sample.py::test_with_data" in done.stdout
    assert "1 passed" in done.stdout


def test_a_part_that_is_demanded_and_missing_fails_the_run(sample: Path) -> None:
    """A green run of the CI has run everything."""
    done = run(sample, SLIPWAY_TEST_REQUIRE="data")

    assert done.returncode != 0
    assert "SLIPWAY_TEST_REQUIRE demands data" in done.stdout + done.stderr


def test_a_part_that_is_there_is_used(sample: Path) -> None:
    """Whether it is demanded or not."""
    (sample.parent / "banking77-train.jsonl").touch()
    done = run(sample, SLIPWAY_TEST_REQUIRE="data", SLIPWAY_TEST_DATA=str(sample.parent))

    assert "2 passed" in done.stdout


def test_a_part_that_nobody_knows_is_an_error(sample: Path) -> None:
    """A misspelt name would leave tests out forever."""
    assert "expected some of" in (done := run(sample, SLIPWAY_TEST_REQUIRE="dta")).stdout + done.stderr
    sample.write_text(SAMPLE.replace('"data"', '"dta"'))
    assert "expected one of" in (done := run(sample)).stdout + done.stderr
