"""The MLflow run of a step: found again by the step's key, so that a repeated attempt continues it.

    with step_run(job) as run:
        run.log_params({"learning_rate": 1e-3})
        run.log_metrics({"loss": 0.7}, step=12)

The run lies in the experiment that SLIPWAY_RELEASE names (else "slipway"). With no MLFLOW_TRACKING_URI, and on every
node but the first, the logger swallows what it is given.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pipeline import __version__
from pipeline.job import Job
from pipeline.registry.connection import connect, exists_already, missing_is_fine, quoted, translated_errors
from pipeline.registry.locks import file_lock

KEY_TAG = "slipway.key"
STEP_TAG = "slipway.step"
DEFAULT_EXPERIMENT = "slipway"
_BATCH = 100
"""MLflow takes so many params or tags, and ten times as many metrics, in one request."""


class RunLogger(Protocol):
    """What a step may tell about its run."""

    run_id: str | None

    def log_params(self, params: Mapping[str, Any]) -> None: ...
    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None: ...
    def log_artifact(self, path: Path, folder: str | None = None) -> None: ...
    def log_artifacts(self, path: Path, folder: str | None = None) -> None: ...
    def set_tags(self, tags: Mapping[str, Any]) -> None: ...


class NoRun:
    """A logger that keeps nothing."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, Any]) -> None:
        pass

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        pass

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        pass

    def log_artifacts(self, path: Path, folder: str | None = None) -> None:
        pass

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        pass


class MlflowRun:
    """A logger over one MLflow run."""

    def __init__(self, tracking_uri: str, run_id: str) -> None:
        self.tracking_uri = tracking_uri
        self.run_id: str | None = run_id
        self._id = run_id
        self._client = connect(tracking_uri)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters that the run does not have yet: MLflow lets none change, and an earlier attempt may have
        logged them."""
        from mlflow.entities import Param

        with translated_errors(self.tracking_uri):
            known = self._client.get_run(self._id).data.params
            new = [Param(name, str(value)) for name, value in params.items() if name not in known]
            for start in range(0, len(new), _BATCH):
                self._client.log_batch(self._id, params=new[start : start + _BATCH])

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        points = [Metric(name, float(value), now_ms, step) for name, value in metrics.items()]
        with translated_errors(self.tracking_uri):
            for start in range(0, len(points), 10 * _BATCH):
                self._client.log_batch(self._id, metrics=points[start : start + 10 * _BATCH])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copies one small file to MLflow."""
        with translated_errors(self.tracking_uri):
            self._client.log_artifact(self._id, str(path), folder)

    def log_artifacts(self, path: Path, folder: str | None = None) -> None:
        """Copies the files below the folder `path` to MLflow."""
        with translated_errors(self.tracking_uri):
            self._client.log_artifacts(self._id, str(path), folder)

    def log_dataset(self, name: str, *, digest: str, uri: str, context: str) -> None:
        """Names a data set as an input of the run; MLflow shows the first 36 digits of its digest."""
        import json

        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind = "s3" if uri.startswith("s3://") else "local"
        source = json.dumps({"uri": uri, "sha256": digest})
        dataset = Dataset(name=name, digest=digest[:36], source_type=kind, source=source)
        with translated_errors(self.tracking_uri):
            self._client.log_inputs(self._id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        entries = [RunTag(name, str(value)) for name, value in tags.items()]
        with translated_errors(self.tracking_uri):
            for start in range(0, len(entries), _BATCH):
                self._client.log_batch(self._id, tags=entries[start : start + _BATCH])

    def artifact_uri(self, folder: str) -> str:
        """Where MLflow keeps the run's files."""
        with translated_errors(self.tracking_uri):
            return f"{self._client.get_run(self._id).info.artifact_uri}/{folder}"

    def end(self, status: str) -> None:
        with translated_errors(self.tracking_uri):
            self._client.set_terminated(self._id, status)


@contextmanager
def step_run(job: Job) -> Iterator[RunLogger]:
    """The logger of `job`'s MLflow run, which ends FINISHED, or FAILED if the block raises.

    A process that is killed leaves the run open; the next attempt at the same spec goes on with it.

    Raises:
        TransientError: MLflow does not answer.
    """
    tracking_uri = job.settings.tracking_uri
    if tracking_uri is None:
        job.say("MLFLOW_TRACKING_URI is not set: this step logs nothing to MLflow")
        yield NoRun()
        return
    if not job.is_first_node:
        yield NoRun()
        return
    with open_run(job, tracking_uri) as run:
        yield run


@contextmanager
def open_run(job: Job, tracking_uri: str) -> Iterator[MlflowRun]:
    """Like `step_run`, for a step that cannot do without MLflow."""
    run = MlflowRun(tracking_uri, _find_or_create(job, tracking_uri))
    job.figures["mlflow_run_id"] = run.run_id
    job.say(f"mlflow run {run.run_id} in experiment {experiment_name(job)!r} at {tracking_uri}")
    finished = False
    try:
        yield run
        finished = True
    finally:
        run.end("FINISHED" if finished else "FAILED")


def experiment_name(job: Job) -> str:
    return job.settings.release or DEFAULT_EXPERIMENT


def _find_or_create(job: Job, tracking_uri: str) -> str:
    """The run with the job's key, opened again; a new one if there is none. One at a time: the start times by which
    the oldest is told are the clients' own."""
    client = connect(tracking_uri)
    lock_path = job.settings.home_path / "locks" / f"run-{job.key}.lock"
    with translated_errors(tracking_uri), file_lock(lock_path):
        experiment_id = _experiment(client, experiment_name(job))
        runs = _runs_of(client, experiment_id, job.key)
        if not runs:
            tags = {
                KEY_TAG: job.key,
                STEP_TAG: job.step,
                "slipway.version": __version__,
                "mlflow.source.name": f"slipway {job.step}",
                "mlflow.source.type": "JOB",
            }
            client.create_run(experiment_id, tags=tags, run_name=f"{job.step}-{job.key[:8]}")
            runs = _runs_of(client, experiment_id, job.key)
        # A request that was repeated after a lost answer leaves a second run: all agree on the oldest.
        for surplus in runs[1:]:
            with missing_is_fine():
                client.delete_run(surplus)
        client.update_run(runs[0], status="RUNNING")
        return runs[0]


def _runs_of(client: Any, experiment_id: str, key: str) -> list[str]:
    found = client.search_runs(
        [experiment_id], f"tags.`{KEY_TAG}` = {quoted(key)}", order_by=["attributes.start_time ASC"]
    )
    return [run.info.run_id for run in sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))]


def _experiment(client: Any, name: str) -> str:
    """The id of the experiment `name`, whoever creates it first."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            created: str = client.create_experiment(name)
            return created
        except MlflowException as error:
            if not exists_already(error):
                raise
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    experiment_id: str = found.experiment_id
    return experiment_id
