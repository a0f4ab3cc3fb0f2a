"""One whole stack for all end-to-end tests, in a home of its own."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_stack import RunningStack


@pytest.fixture(scope="session")
def stack() -> Iterator[RunningStack]:
    """A running stack. Tests that break parts of it put them right again."""
    with tempfile.TemporaryDirectory(prefix="slipway-e2e-", ignore_cleanup_errors=True) as folder:
        running = RunningStack(Path(folder) / "home")
        try:
            running.up()
            yield running
        finally:
            running.down()
