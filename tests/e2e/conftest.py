"""One whole stack for all end-to-end tests, in a home of its own, and the first release on it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from releases import Rows, release
from running_stack import RunningStack

ORDER = ("test_release", "test_pages", "test_ways_in", "test_rollout_drill", "test_stack")
"""The first makes what the others look at; the last takes the stack to pieces."""
TRAIN_ROWS, EVAL_ROWS = 1200, 150


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(ORDER)}
    items.sort(key=lambda item: ranks.get(item.path.stem, -1))


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


@pytest.fixture(scope="session")
def slice_of_banking77(real_data_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Every eighth or so of the real rows: all intents are there."""
    folder = tmp_path_factory.mktemp("banking77")
    paths = {}
    for name, rows in (("train", TRAIN_ROWS), ("test", EVAL_ROWS)):
        lines = (real_data_path / f"banking77-{name}.jsonl").read_text().splitlines()
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("\n".join(lines[:: len(lines) // rows]) + "\n")
    return paths


@pytest.fixture(scope="session")
def first_release(
    stack: RunningStack, slice_of_banking77: Rows, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The summary of a whole release: real rows, two training nodes, quantization, the registry, the rollout."""
    return release(stack, slice_of_banking77, tmp_path_factory.mktemp("release") / "summary.json")
