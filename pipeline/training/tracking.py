"""Carries the training's figures to MLflow, beside the training: an MLflow that is slow or away delays nothing.

Reads the events that the first rank writes, a JSON object a line, and adds the machine's load.
"""

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pipeline.errors import SpecError, TransientError
from pipeline.job import Job
from pipeline.registry.runs import MlflowRun, open_run

INTERVAL_S = 2.0
SYSTEM_INTERVAL_S = 10.0
ERROR_TAG = "slipway.error"
"""Why the training failed; of at most TAG_LENGTH characters, which any MLflow keeps."""
TAG_LENGTH = 2000
LAST_CHANCE_S = 120.0
"""How long the step waits at its end for an MLflow that does not answer."""


class _TrainingFailed(Exception):
    """Ends the run as FAILED."""


class Tracker:
    """A context manager around the training. `job.figures` tells the run's id, and what did not reach MLflow."""

    def __init__(
        self,
        job: Job,
        params: Mapping[str, Any],
        *,
        events_path: Path,
        plot_paths: tuple[Path, ...],
        wait_for_events: bool = False,
    ) -> None:
        """Args: wait_for_events: the first rank may be on another node, which then does the tracking."""
        self._job = job
        self._wait_for_events = wait_for_events
        self._params = params
        self._events_path = events_path
        self._plot_paths = plot_paths
        self._offset = 0
        self._samples = 0
        self._sampled_at = 0.0
        self._trouble = ""
        self._error = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._track, name="mlflow", daemon=True)

    def __enter__(self) -> Self:
        if self._job.settings.tracking_uri is None:
            self._job.say("MLFLOW_TRACKING_URI is not set: this step logs nothing to MLflow")
        else:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if not self._thread.is_alive() and not self._trouble:
            return
        if error is not None:
            self._error = str(error) or type(error).__name__
        self._ended.set()
        self._thread.join(timeout=5.0 if self._error else LAST_CHANCE_S)
        if self._thread.is_alive() and not self._trouble:
            self._trouble = f"MLflow did not take the last figures within {LAST_CHANCE_S:.0f} s"
        if self._trouble:
            self._job.say(f"warning: {self._trouble}; the training itself is not affected")
            self._job.figures["mlflow_trouble"] = self._trouble

    def _track(self) -> None:
        """Follows the training in one MLflow run, which it opens again as often as MLflow goes away."""
        while self._wait_for_events and not self._events_path.is_file():
            if self._ended.wait(INTERVAL_S) and not self._events_path.is_file():
                return
        last_try = False
        while not last_try:
            last_try = self._ended.is_set()
            try:
                with open_run(self._job, str(self._job.settings.tracking_uri)) as run:
                    self._follow(run)
            except TransientError as error:
                self._trouble = str(error)
                self._job.say(f"warning: {error}")
                self._ended.wait(INTERVAL_S)
            except SpecError as error:
                self._trouble = str(error)
                return
            except _TrainingFailed:
                return
            else:
                self._trouble = ""
                return

    def _follow(self, run: MlflowRun) -> None:
        run.log_params(self._params)
        while not self._ended.wait(INTERVAL_S):
            self._send(run)
        self._send(run)
        if self._error:
            run.set_tags({ERROR_TAG: self._error[:TAG_LENGTH]})
            raise _TrainingFailed
        for path in self._plot_paths:
            if path.is_file():
                run.log_artifact(path, "training")

    def _send(self, run: MlflowRun) -> None:
        if self._events_path.is_file():
            data = self._events_path.read_bytes()
            for line in data[self._offset :].splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                event = json.loads(line)
                run.log_metrics({name: event[name] for name in event if name != "step"}, step=int(event["step"]))
                self._offset += len(line)
        if time.monotonic() - self._sampled_at >= SYSTEM_INTERVAL_S:
            self._sampled_at = time.monotonic()
            run.log_metrics(system_metrics(), step=self._samples)
            self._samples += 1


def system_metrics() -> dict[str, float]:
    """The machine's load, under the names that MLflow's "System metrics" page shows."""
    import psutil

    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": round(memory.used / 1e6, 1),
        "system/system_memory_usage_percentage": memory.percent,
    }
