"""Runs one step as a job that outlives the worker, the scheduler and the triggerer."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from pipeline import settings
from pipeline.artifacts import find_manifest, read_manifest
from pipeline.contracts.base import ArtifactRef, step_key
from pipeline.contracts.manifest import Manifest
from pipeline.contracts.specs import STEPS
from pipeline.errors import EXIT_TRANSIENT, SlipwayError
from pipeline.settings import Settings
from slipway_airflow.backends import open_backend
from slipway_airflow.backends.base import Backend, Claim, JobHandle, JobRequest, holder_of, job_id, task_labels
from slipway_airflow.job_log import JobLog
from slipway_airflow.triggers.job import JobTrigger
from slipway_airflow.upstream import Upstream, Work

BuildWork = Callable[[Upstream], Work]

WATCH_S = 8.0
"""How long the task itself waits before it hands the job to the triggerer. A job shorter than that saves the way to
the triggerer and back, which takes some seconds."""
WATCH_POLL_S = 0.1


RETRIES: dict[str, Any] = {
    "retries": 5,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=5),
}
"""For faults that pass. A mapped task must be given them with `partial`."""


class JobOperator(BaseOperator):
    """Runs steps as jobs: `run_step` returns {"uri", "digest"} of the artifact of `step`.

    A finished artifact is reused without a job. A transient fault (exit code 75, a lost job) is retried with growing
    delays, anything else fails the task at once with the job's own last error. A retry finds its job again by id, so
    it attaches to one that still runs.
    """

    ui_color = "#e0ecff"

    def __init__(self, *, step: str, **kwargs: Any) -> None:
        super().__init__(**{**RETRIES, **kwargs})
        self.step = step
        self._claimed: tuple[str, Claim] | None = None

    def run_step(self, context: Context, work: Work) -> dict[str, str]:
        """The artifact that `step` makes of `work`: the one in the store, or that of a job, for which it may defer."""
        configured = settings.load()
        with told_apart():
            key = step_key(self.step, STEPS[self.step].version, work.spec)
            out_uri = f"{configured.store_uri}/{self.step}/{key}"
            finished = find_manifest(out_uri)
            if finished:
                self.log.info("reused %s, made on %s in %.1f s", out_uri, finished.started_at, finished.duration_s)
                return self._done(context, finished, out_uri)
            request = self._request(context, work, out_uri, configured)
            handle = self._submit(open_backend(configured), request)
        return self._wait(context, JobLog(open_backend(configured), handle.job_id, handle.log_offset), out_uri)

    def resume(self, context: Context, event: dict[str, Any], out_uri: str) -> dict[str, str]:
        """Goes on when the trigger has fired."""
        backend = open_backend(settings.load())
        log = JobLog(backend, job_id(self.step, out_uri), event["offset"], event["error"])
        return self._finish(context, log, out_uri)

    def on_kill(self) -> None:
        """The task was ended while it was watching its job itself."""
        if self._claimed:
            # In a thread of its own: this may be a signal's handler that has interrupted `status` under its lock.
            threading.Thread(target=open_backend(settings.load()).cancel, args=self._claimed).start()

    def _request(self, context: Context, work: Work, out_uri: str, configured: Settings) -> JobRequest:
        labels = task_labels(context["ti"])
        return JobRequest(
            job_id=job_id(self.step, out_uri),
            environment=STEPS[self.step].environment,
            arguments=("-m", "pipeline", self.step, "--spec", "{spec}", "--out", out_uri),
            spec=work.spec.model_dump_json(indent=2),
            deadline_s=work.deadline_s,
            nodes=work.nodes,
            min_nodes=work.min_nodes,
            variables={**_variables(configured), "SLIPWAY_RELEASE": work.release},
            resources=work.resources,
            resources_field=work.resources_field,
            claim=Claim(holder=holder_of(labels), token=uuid.uuid4().hex),
            labels={**labels, "step": self.step},
        )

    def _submit(self, backend: Backend, request: JobRequest) -> JobHandle:
        handle = backend.submit(request)
        if handle.attached and backend.status(request.job_id).state == "succeeded":
            # It succeeded once, but what it made is gone from the store.
            backend.forget(request.job_id)
            handle = backend.submit(request)
        self._claimed = (request.job_id, request.claim)
        self.log.info("%s job %s", "attached to" if handle.attached else "started", handle.job_id)
        return handle

    def _wait(self, context: Context, log: JobLog, out_uri: str) -> dict[str, str]:
        """Watches the job for a while, then leaves that to the triggerer."""
        until = time.monotonic() + WATCH_S
        while log.backend.status(log.job_id).state == "running":
            self._show(log.read())
            if time.monotonic() > until:
                self._defer(log, out_uri)
            time.sleep(WATCH_POLL_S)
        return self._finish(context, log, out_uri)

    def _defer(self, log: JobLog, out_uri: str) -> None:
        assert self._claimed is not None
        claim = self._claimed[1]
        trigger = JobTrigger(
            job_id=log.job_id, holder=claim.holder, token=claim.token, offset=log.offset, error=log.error
        )
        self.defer(trigger=trigger, method_name="resume", kwargs={"out_uri": out_uri})

    def _finish(self, context: Context, log: JobLog, out_uri: str) -> dict[str, str]:
        """What the ended job means for the task."""
        status = log.backend.status(log.job_id)
        if status.state == "running":
            raise AirflowException(f"{self.step}: another run started job {log.job_id} anew; attaching to it")
        self._show(log.rest())
        with told_apart():
            if status.state == "succeeded":
                return self._done(context, read_manifest(out_uri), out_uri)
        message = f"{self.step}: {log.error or f'job {log.job_id} {status.state}, exit code {status.exit_code}'}"
        if status.exit_code == EXIT_TRANSIENT or status.state in ("lost", "unknown"):
            raise AirflowException(message)
        raise AirflowFailException(message)

    def _done(self, context: Context, manifest: Manifest, out_uri: str) -> dict[str, str]:
        """The task's XCom. Subclasses look at the result here."""
        ref: ArtifactRef = manifest.ref(out_uri)
        return ref.model_dump()

    def _show(self, lines: list[str] | Iterator[str]) -> None:
        for line in lines:
            self.log.info("%s", line)


class StepOperator(JobOperator):
    """Runs `step` with the spec that `work` builds."""

    def __init__(self, *, step: str, work: BuildWork, **kwargs: Any) -> None:
        kwargs.setdefault("task_id", step)
        super().__init__(step=step, **kwargs)
        self.work = work

    def execute(self, context: Context) -> dict[str, str]:
        with told_apart():
            work = self.work(Upstream(context, settings.load()))
        return self.run_step(context, work)


def _variables(configured: Settings) -> dict[str, str]:
    """What a job needs to find the same places as we do."""
    named = {
        "SLIPWAY_HOME": str(configured.home_path),
        "SLIPWAY_VENVS": str(configured.venvs_path),
        "SLIPWAY_STORE": configured.store_uri,
        "SLIPWAY_S3_ENDPOINT": configured.s3_endpoint,
        "MLFLOW_TRACKING_URI": configured.tracking_uri,
        "SLIPWAY_LOG_PROMPTS": "true" if configured.log_prompts else "",
    }
    return {name: value for name, value in named.items() if value}


@contextmanager
def told_apart() -> Iterator[None]:
    """Turns our errors into Airflow's: those that a retry may heal, and those that it cannot."""
    try:
        yield
    except SlipwayError as error:
        kind = AirflowException if error.exit_code == EXIT_TRANSIENT else AirflowFailException
        raise kind(f"{type(error).__name__}: {error}") from error
