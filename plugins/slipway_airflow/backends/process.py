"""Jobs as detached processes of this machine, for a laptop and for tests.

home/jobs/{job_id}/
  request.json   what to run            spec.json   the step's spec
  runner.json    the runner's pid       alive       locked by the runner while it lives
  log            of all attempts        exit_code   written last
  claims/        who wants the job      cancelled   it was ended on request

The runner (process_runner.py) belongs to no worker: Airflow may be killed and started again around it.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.contracts.base import sha256_hex
from pipeline.errors import TransientError
from pipeline.settings import ROOT, Settings
from slipway_airflow.backends import process_runner
from slipway_airflow.backends.base import Claim, JobHandle, JobRequest, JobStatus

CANCEL_WAIT_S = process_runner.GRACE_S + 5
ENDED = ("exit_code", "runner.json", "cancelled")
"""What an attempt leaves behind; removed when the next one starts."""


class ProcessBackend:
    """Implements `base.Backend`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.jobs_path = settings.home_path / "jobs"

    def submit(self, request: JobRequest) -> JobHandle:
        folder = self.jobs_path / request.job_id
        try:
            (folder / "claims").mkdir(parents=True, exist_ok=True)
            with locked(folder):
                return self._submit(folder, request)
        except OSError as error:
            raise TransientError(f"cannot start job {request.job_id} in {folder}: {error}") from error

    def _submit(self, folder: Path, request: JobRequest) -> JobHandle:
        _claim_path(folder, request.claim).write_text(request.claim.token)
        if self._state(folder).state in ("running", "succeeded"):
            begin = json.loads((folder / "request.json").read_text())["log_offset"]
            return JobHandle(job_id=request.job_id, attached=True, log_offset=begin)
        process_runner.kill_processes(request.job_id)
        for name in ENDED:
            (folder / name).unlink(missing_ok=True)
        log = folder / "log"
        begin = log.stat().st_size if log.exists() else 0
        self._write_request(folder, request, begin)
        self._launch(folder, request)
        return JobHandle(job_id=request.job_id, attached=False, log_offset=begin)

    def _write_request(self, folder: Path, request: JobRequest, log_offset: int) -> None:
        spec_path = folder / "spec.json"
        spec_path.write_text(request.spec)
        python = str(self.settings.python_path(request.environment))
        described = {
            "job_id": request.job_id,
            "command": [python, *(str(spec_path) if part == "{spec}" else part for part in request.arguments)],
            "directory": str(ROOT),
            "nodes": request.nodes,
            "deadline_s": request.deadline_s,
            "log_offset": log_offset,
            "labels": request.labels,
            "submitted_at": time.time(),
        }
        process_runner.write_atomically(folder / "request.json", json.dumps(described, indent=2))

    def _launch(self, folder: Path, request: JobRequest) -> None:
        """The environment reaches the job by inheritance only: neither a file nor a command line shows it."""
        environment = {name: value for name, value in os.environ.items() if not _is_airflows(name)}
        started = subprocess.run(
            [sys.executable, "-I", "-S", process_runner.__file__, str(folder)],
            env={**environment, **request.variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if started.returncode:
            raise TransientError(f"the runner of job {request.job_id} did not start: {started.stderr.strip()}")

    def status(self, job_id: str) -> JobStatus:
        folder = self.jobs_path / job_id
        if not (folder / "request.json").exists():
            return JobStatus(state="unknown")
        with locked(folder):
            status = self._state(folder)
        if status.state == "lost":
            process_runner.kill_processes(job_id)
        return status

    def _state(self, folder: Path) -> JobStatus:
        if not (folder / "request.json").exists():
            return JobStatus(state="unknown")
        # The runner writes the exit code before it lets go of its lock, so the lock is looked at first.
        alive = is_locked(folder / "alive")
        code = _read_exit_code(folder)
        if code is None:
            return JobStatus(state="running" if alive else "lost")
        if code == 0:
            return JobStatus(state="succeeded", exit_code=0)
        cancelled = code == process_runner.EXIT_CANCELLED and (folder / "cancelled").exists()
        return JobStatus(state="cancelled" if cancelled else "failed", exit_code=code)

    def logs(self, job_id: str, offset: int, limit_bytes: int = 1 << 16) -> tuple[str, int]:
        try:
            with (self.jobs_path / job_id / "log").open("rb") as file:
                file.seek(offset)
                data = file.read(limit_bytes)
        except FileNotFoundError:
            return "", offset
        if len(data) == limit_bytes or not data.endswith(b"\n"):
            # A line longer than the limit is handed over in pieces; any other is kept whole.
            data = data[: data.rfind(b"\n") + 1] or (data if len(data) == limit_bytes else b"")
        return data.decode(errors="replace"), offset + len(data)

    def cancel(self, job_id: str, claim: Claim | None = None) -> bool:
        folder = self.jobs_path / job_id
        if not (folder / "request.json").exists():
            return False
        with locked(folder):
            if claim is not None and self._let_go(folder, claim):
                return False
            if self._state(folder).state != "running":
                process_runner.kill_processes(job_id)
                return False
            (folder / "cancelled").touch()
            self._stop_runner(folder)
            process_runner.kill_processes(job_id)
        return True

    def claims_of(self, holder: str) -> list[tuple[str, Claim]]:
        name = _claim_name(holder)
        found = [(path.parents[1].name, path) for path in self.jobs_path.glob(f"*/claims/{name}")]
        tokens = [(job_id, _read_if_there(path)) for job_id, path in found]
        return [(job_id, Claim(holder=holder, token=token)) for job_id, token in tokens if token]

    def _let_go(self, folder: Path, claim: Claim) -> bool:
        """Drops `claim`; whether somebody still wants the job."""
        path = _claim_path(folder, claim)
        with contextlib.suppress(FileNotFoundError):
            if path.read_text() == claim.token:
                path.unlink()
        return any((folder / "claims").iterdir())

    def _stop_runner(self, folder: Path) -> None:
        """SIGTERM, and SIGKILL if that does not help. The runner holds `alive`, so its pid cannot be another's."""
        pid = json.loads((folder / "runner.json").read_text())["pid"]
        for number, wait_s in ((signal.SIGTERM, CANCEL_WAIT_S), (signal.SIGKILL, CANCEL_WAIT_S)):
            if not is_locked(folder / "alive"):
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            until = time.monotonic() + wait_s
            while time.monotonic() < until and is_locked(folder / "alive"):
                time.sleep(0.02)
        if _read_exit_code(folder) is None:
            process_runner.write_atomically(folder / "exit_code", f"{process_runner.EXIT_CANCELLED}\n")

    def forget(self, job_id: str) -> None:
        folder = self.jobs_path / job_id
        if (folder / "request.json").exists():
            with locked(folder):
                if self._state(folder).state != "running":
                    shutil.rmtree(folder)

    def reap(self, keep_s: float) -> int:
        reaped = 0
        for folder in self.jobs_path.iterdir() if self.jobs_path.is_dir() else ():
            state = self.status(folder.name).state
            if state != "running" and folder.stat().st_mtime < time.time() - keep_s:
                self.forget(folder.name)
                reaped += 1
        return reaped


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time changes or judges a job."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock: true until its very end, whatever became of its pid."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _read_exit_code(folder: Path) -> int | None:
    try:
        return int((folder / "exit_code").read_text())
    except FileNotFoundError:
        return None


def _claim_path(folder: Path, claim: Claim) -> Path:
    return folder / "claims" / _claim_name(claim.holder)


def _claim_name(holder: str) -> str:
    return sha256_hex(holder.encode())[:32]


def _read_if_there(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _is_airflows(name: str) -> bool:
    """Airflow's own settings hold its database's address and keys; a step needs none of them."""
    return name.startswith(("AIRFLOW_", "_AIRFLOW_", "__AIRFLOW"))
