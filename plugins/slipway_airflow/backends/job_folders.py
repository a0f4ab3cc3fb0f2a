"""What backends on one file system share: a folder a job, claims on it, its log, and the order of what happens to it.

home/jobs/{job_id}/
  request.json   what to run            spec.json   the step's spec
  log            of all attempts        exit_code   written last
  claims/        who wants the job      cancelled   it was ended on request
  lock           held by whoever changes or judges the job

A step may write into its job's folder, so nothing here follows a link that it may have put there.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.contracts.base import sha256_hex
from pipeline.errors import SlipwayError, SpecError, TransientError
from slipway_airflow.backends.base import Claim, JobHandle, JobRequest, JobStatus
from slipway_airflow.backends.process_runner import EXIT_CANCELLED, write_atomically


class JobFolder:
    """The folder of one job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job_id = path.name

    @property
    def log_path(self) -> Path:
        return self.path / "log"

    @property
    def spec_path(self) -> Path:
        return self.path / "spec.json"

    def exists(self) -> bool:
        return (self.path / "request.json").exists()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time changes or judges a job."""
        with open(self.path / "lock", "w", opener=open_no_link) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # --- the request ---

    def request(self) -> dict[str, Any]:
        """What the job's newest attempt was asked to do."""
        try:
            request: dict[str, Any] = json.loads(_read_if_there(self.path / "request.json"))
        except ValueError as error:
            raise SpecError(f"{self.path}/request.json is damaged ({error}): remove the folder") from error
        return request

    def begin(self, request: JobRequest, **described: Any) -> int:
        """Clears what the last attempt left, and writes down what the next one is to do.

        Returns:
            Where its log begins.
        """
        for name in ("exit_code", "cancelled"):
            (self.path / name).unlink(missing_ok=True)
        begin = self.log_path.stat().st_size if self.log_path.exists() else 0
        write_atomically(self.spec_path, request.spec)
        spec = str(self.spec_path)
        fields = {
            "job_id": request.job_id,
            "arguments": [spec if part == "{spec}" else part for part in request.arguments],
            "nodes": request.nodes,
            "min_nodes": request.min_nodes,
            "deadline_s": request.deadline_s,
            "log_offset": begin,
            "labels": request.labels,
            "submitted_at": time.time(),
            **described,
        }
        write_atomically(self.path / "request.json", json.dumps(fields, indent=2))
        return begin

    # --- how it ended ---

    def exit_code(self) -> int | None:
        """None until somebody has written it down."""
        text = _read_if_there(self.path / "exit_code").strip()
        if text and not text.isdecimal():
            raise SpecError(f"{self.path}/exit_code holds {text[:40]!r}, expected a number: remove the folder")
        return int(text) if text else None

    def finish(self, exit_code: int) -> None:
        write_atomically(self.path / "exit_code", f"{exit_code}\n")

    def ended(self) -> JobStatus | None:
        """The status of a job whose exit code is known."""
        code = self.exit_code()
        if code is None:
            return None
        if code == 0:
            return JobStatus(state="succeeded", exit_code=0)
        cancelled = code == EXIT_CANCELLED and (self.path / "cancelled").exists()
        return JobStatus(state="cancelled" if cancelled else "failed", exit_code=code)

    def mark(self, name: str) -> None:
        """Notes a fact: a file that is there."""
        with open(self.path / name, "a", opener=open_no_link):
            pass

    # --- claims ---

    def claim(self, claim: Claim) -> None:
        path = self._claim_path(claim.holder)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, claim.token)

    def claim_of(self, holder: str) -> Claim | None:
        token = _read_if_there(self._claim_path(holder))
        return Claim(holder=holder, token=token) if token else None

    def let_go(self, claim: Claim) -> bool:
        """Drops `claim`; whether somebody still wants the job."""
        if self.claim_of(claim.holder) == claim:
            self._claim_path(claim.holder).unlink(missing_ok=True)
        return any(not path.name.startswith(".") for path in self._claims_path.iterdir())

    def _claim_path(self, holder: str) -> Path:
        return self._claims_path / sha256_hex(holder.encode())[:32]

    @property
    def _claims_path(self) -> Path:
        path = self.path / "claims"
        if path.is_symlink():
            raise linked(path)
        return path

    # --- the log ---

    def say(self, message: str) -> None:
        """A line of the backend's own."""
        with open(self.log_path, "a", opener=open_no_link) as log:
            log.write(f"{message}\n")

    def read_log(self, offset: int, limit_bytes: int) -> tuple[str, int]:
        """Whole lines from `offset` on, and the next offset."""
        try:
            with open(self.log_path, "rb", opener=open_no_link) as file:
                file.seek(offset)
                data = file.read(limit_bytes)
        except FileNotFoundError:
            return "", offset
        if len(data) == limit_bytes or not data.endswith(b"\n"):
            # A line longer than the limit is handed over in pieces; any other is kept whole.
            data = data[: data.rfind(b"\n") + 1] or (data if len(data) == limit_bytes else b"")
        return data.decode(errors="replace"), offset + len(data)


class FolderBackend(ABC):
    """Implements `base.Backend` but for what a job runs in: a subclass starts, looks at and ends that."""

    def __init__(self, jobs_path: Path) -> None:
        self.jobs_path = jobs_path

    # --- what a subclass adds; each is called with the job's lock held ---

    @abstractmethod
    def _state(self, job: JobFolder) -> JobStatus:
        """Of a job that was submitted."""

    @abstractmethod
    def _launch(self, job: JobFolder, request: JobRequest) -> int:
        """Starts a new attempt; where its log begins."""

    @abstractmethod
    def _stop(self, job: JobFolder) -> None:
        """Ends a running job, asking first."""

    @abstractmethod
    def _clear(self, job: JobFolder) -> None:
        """Ends at once whatever an attempt that is over has left running, and drops it."""

    # --- base.Backend ---

    def submit(self, request: JobRequest) -> JobHandle:
        job = self._job(request.job_id)
        try:
            job.path.mkdir(parents=True, exist_ok=True)
            with job.locked():
                return self._submit(job, request)
        except OSError as error:
            raise TransientError(f"cannot start job {request.job_id} in {job.path}: {error}") from error

    def _submit(self, job: JobFolder, request: JobRequest) -> JobHandle:
        job.claim(request.claim)
        if job.exists() and self._state(job).state in ("running", "succeeded"):
            return JobHandle(job_id=job.job_id, attached=True, log_offset=job.request()["log_offset"])
        self._clear(job)
        return JobHandle(job_id=job.job_id, attached=False, log_offset=self._launch(job, request))

    def status(self, job_id: str) -> JobStatus:
        job = self._job(job_id)
        if not job.exists():
            return JobStatus(state="unknown")
        with job.locked():
            status = self._state(job)
            if status.state == "lost":
                self._clear(job)
        return status

    def logs(self, job_id: str, offset: int, limit_bytes: int = 1 << 16) -> tuple[str, int]:
        return self._job(job_id).read_log(offset, limit_bytes)

    def cancel(self, job_id: str, claim: Claim | None = None) -> bool:
        job = self._job(job_id)
        if not job.exists():
            return False
        with job.locked():
            if claim is not None and job.let_go(claim):
                return False
            if self._state(job).state != "running":
                self._clear(job)
                return False
            job.mark("cancelled")
            self._stop(job)
            self._clear(job)
            if job.exit_code() is None:
                job.finish(EXIT_CANCELLED)
        return True

    def claims_of(self, holder: str) -> list[tuple[str, Claim]]:
        found = [(job.job_id, job.claim_of(holder)) for job in self._jobs()]
        return [(job_id, claim) for job_id, claim in found if claim]

    def forget(self, job_id: str) -> None:
        job = self._job(job_id)
        if job.path.is_dir():
            with job.locked():
                if not job.exists() or self._state(job).state != "running":
                    self._clear(job)
                    shutil.rmtree(job.path)

    def reap(self, keep_s: float) -> int:
        reaped, refused = 0, []
        for job in self._jobs():
            try:
                state = self.status(job.job_id).state
                if state != "running" and job.path.stat().st_mtime < time.time() - keep_s:
                    self.forget(job.job_id)
                    reaped += 1
            except (SlipwayError, OSError) as error:
                refused.append(f"{job.path}: {error}")
        if refused:
            raise SpecError(
                f"{reaped} jobs were cleared away, {len(refused)} cannot be; remove their folders: {'; '.join(refused)}"
            )
        return reaped

    def _job(self, job_id: str) -> JobFolder:
        return JobFolder(self.jobs_path / job_id)

    def _jobs(self) -> list[JobFolder]:
        return [JobFolder(path) for path in self.jobs_path.iterdir()] if self.jobs_path.is_dir() else []


def open_no_link(path: str, flags: int) -> int:
    """For `open`.

    Raises:
        SpecError: it is a symbolic link.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise linked(path) from error


def linked(path: Path | str) -> SpecError:
    return SpecError(f"{path} is a link, which only the step itself can have made; its job is not trusted")


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


def _read_if_there(path: Path) -> str:
    try:
        with open(path, opener=open_no_link) as file:
            return file.read()
    except FileNotFoundError:
        return ""
