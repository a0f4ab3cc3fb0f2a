"""The real servers that integration tests share; each starts when the first test asks for it."""

import uuid
from pathlib import Path

import pytest

from pipeline.registry.models import Registry
from tests.integration.finished_release import FinishedRelease
from tests.integration.mlflow_server import MlflowServer, mlflow_server

__all__ = ["mlflow_server"]

LONG = ("test_vllm_replica.py", "test_airflow.py", "test_rollout.py")
"""Begin before the others, so that no file is left alone at the end where several run side by side."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture
def finished_release(tmp_path: Path, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> FinishedRelease:
    """A release of a name of its own, so that tests share one server; the environment points a step at it."""
    release = FinishedRelease(tmp_path / "home", {"name": f"intents-{uuid.uuid4().hex[:12]}"})
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SLIPWAY_STORE", release.settings.store_uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    monkeypatch.setenv("SLIPWAY_RELEASE", release.recipe.name)
    return release


@pytest.fixture
def registry(finished_release: FinishedRelease, mlflow_server: MlflowServer) -> Registry:
    """The registry of `finished_release`."""
    return Registry(mlflow_server.uri, finished_release.settings.home_path)
