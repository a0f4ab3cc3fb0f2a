"""A training's figures in MLflow, while it runs and when it ends, against a real MLflow server."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline import settings
from pipeline.errors import DataError
from pipeline.job import Job
from pipeline.training import tracking
from pipeline.training.tracking import ERROR_TAG, Tracker
from tests.integration.finished_release import FinishedRelease
from tests.integration.mlflow_server import MlflowServer

pytestmark = pytest.mark.integration

LIMIT_S = 60.0


class Training:
    """A tracked training of which there is nothing but its events."""

    def __init__(self, release: str, server: MlflowServer, folder: Path) -> None:
        loaded = settings.load().model_copy(update={"release": release})
        key = "a" * 64
        self.job = Job(step="finetune", key=key, out_uri=f"{loaded.store_uri}/finetune/{key}", settings=loaded)
        self.events_path = folder / "events.jsonl"
        self.tracker = Tracker(self.job, {"nodes": 2}, events_path=self.events_path, plot_paths=())
        self._release = release
        self._client = MlflowClient(server.uri, server.uri)

    def write(self, text: str) -> None:
        with self.events_path.open("a") as events:
            events.write(text)

    def run(self) -> Run:
        """As MLflow has it."""
        experiment = self._client.get_experiment_by_name(self._release)
        (found,) = self._client.search_runs([experiment.experiment_id])
        return found

    def points(self, metric: str) -> list[tuple[int, float]]:
        """Steps and values of a metric so far; none where there is no run yet."""
        if self._client.get_experiment_by_name(self._release) is None or "mlflow_run_id" not in self.job.figures:
            return []
        history = self._client.get_metric_history(str(self.job.figures["mlflow_run_id"]), metric)
        return [(point.step, point.value) for point in history]


@pytest.fixture
def training(
    finished_release: FinishedRelease,
    mlflow_server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Training:
    monkeypatch.setattr(tracking, "INTERVAL_S", 0.1)
    return Training(finished_release.recipe.name, mlflow_server, tmp_path)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} never came about"
        time.sleep(0.05)


def test_figures_are_in_mlflow_while_the_training_runs(training: Training) -> None:
    """Each with its step, whatever it is called; a line that is half written waits for its end."""
    first = {"step": 10, "loss": 2.5, "memory_mb": 900.0, "share_of_measured_gemm": 0.4, "time/forward_s": 0.01}
    second = json.dumps({"step": 20, "loss": 2.0}) + "\n"
    with training.tracker:
        training.write(json.dumps({"step": 0, "data_rank_0_gflops": 31.5}) + "\n" + json.dumps(first) + "\n")
        training.write(second[:9])
        wait_until(lambda: training.points("loss") == [(10, 2.5)], "the first loss")
        assert training.run().info.status == "RUNNING"
        assert training.points("data_rank_0_gflops") == [(0, 31.5)]
        for name in first.keys() - {"step"}:
            assert training.points(name) == [(10, first[name])]
        training.write(second[9:])
    assert training.points("loss") == [(10, 2.5), (20, 2.0)]
    assert training.run().info.status == "FINISHED"
    assert training.run().data.params == {"nodes": "2"}


def test_a_training_that_fails_says_why_in_mlflow(training: Training) -> None:
    """With the figures up to its end."""
    training.write(json.dumps({"step": 10, "loss": 2.5}) + "\n")
    with pytest.raises(DataError), training.tracker:
        raise DataError("the loss became nan at step 12 on rank 1")
    assert training.points("loss") == [(10, 2.5)]
    assert training.run().info.status == "FAILED"
    assert training.run().data.tags[ERROR_TAG] == "the loss became nan at step 12 on rank 1"
