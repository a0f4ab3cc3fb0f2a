"""Jobs as detached processes of this machine, for a laptop and for tests.

home/jobs/{job_id}/, beside what job_folders.py describes:
  runner.json    the runner's pid       alive       locked by the runner while it lives

The runner (process_runner.py) belongs to no worker: Airflow may be killed and started again around it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

from pipeline.errors import TransientError
from pipeline.settings import ROOT, Settings
from slipway_airflow.backends import process_runner
from slipway_airflow.backends.base import JobRequest, JobStatus
from slipway_airflow.backends.job_folders import FolderBackend, JobFolder, is_locked

CANCEL_WAIT_S = process_runner.GRACE_S + 5


class ProcessBackend(FolderBackend):
    """Implements `base.Backend`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.home_path / "jobs")
        self.settings = settings

    def _state(self, job: JobFolder) -> JobStatus:
        # The runner writes the exit code before it lets go of its lock, so the lock is looked at first.
        if is_locked(job.path / "alive"):
            return JobStatus(state="running")
        return job.ended() or JobStatus(state="lost")

    def _launch(self, job: JobFolder, request: JobRequest) -> int:
        """The environment reaches the job by inheritance only: neither a file nor a command line shows it."""
        (job.path / "runner.json").unlink(missing_ok=True)
        begin = job.begin(request, interpreter=str(self.settings.python_path(request.environment)), directory=str(ROOT))
        environment = {name: value for name, value in os.environ.items() if not _is_airflows(name)}
        started = subprocess.run(
            [sys.executable, "-I", "-S", process_runner.__file__, str(job.path)],
            env={**environment, **request.variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if started.returncode:
            raise TransientError(f"the runner of job {request.job_id} did not start: {started.stderr.strip()}")
        return begin

    def _stop(self, job: JobFolder) -> None:
        """SIGTERM, and SIGKILL if that does not help. The runner holds `alive`, so its pid cannot be another's."""
        pid = json.loads((job.path / "runner.json").read_text())["pid"]
        for number, wait_s in ((signal.SIGTERM, CANCEL_WAIT_S), (signal.SIGKILL, CANCEL_WAIT_S)):
            if not is_locked(job.path / "alive"):
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            until = time.monotonic() + wait_s
            while time.monotonic() < until and is_locked(job.path / "alive"):
                time.sleep(0.02)

    def _clear(self, job: JobFolder) -> None:
        process_runner.kill_processes(job.job_id)


def _is_airflows(name: str) -> bool:
    """Airflow's own settings hold its database's address and keys; a step needs none of them."""
    return name.startswith(("AIRFLOW_", "_AIRFLOW_", "__AIRFLOW"))
