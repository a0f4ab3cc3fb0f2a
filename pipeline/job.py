"""What a step sees of the job it runs in: folders, inputs, progress, and its place among the nodes."""

import fcntl
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from pipeline import artifacts
from pipeline.artifacts.digests import entries_digest, file_entries
from pipeline.contracts.base import ArtifactRef, FileRef, FolderRef, ModelRef
from pipeline.errors import IntegrityError, TransientError
from pipeline.settings import Settings

POLL_S = 0.2


@dataclass(kw_only=True)
class Job:
    """One run of one step.

    A step writes its artifact's files below `staging_path`, keeps what a later attempt can use below `work_path`,
    and returns its Result. Of several nodes one returns it, and publishes; the others return None.
    """

    step: str
    key: str
    out_uri: str
    settings: Settings
    progress_key: str | None = None
    """Of what later attempts can go on from; None: `key`."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Measured on the way and kept in the manifest, outside its digest. Plain JSON values."""
    seeds: dict[str, int] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    @property
    def work_path(self) -> Path:
        """Scratch of this step and key on this machine; it outlives a killed attempt, not a finished one."""
        return self.settings.work_path / self.step / self.key

    @property
    def staging_path(self) -> Path:
        """Becomes the artifact, if this node publishes it. Emptied when an attempt starts."""
        return self.work_path / ("staging" if self.is_first_node else f"staging-{self.settings.node_rank}")

    @property
    def store_uri(self) -> str:
        """Of the store that the artifact goes to."""
        return self.out_uri.rstrip("/").rsplit("/", 2)[0]

    @property
    def checkpoints_uri(self) -> str:
        """A folder of the store for what a later attempt can go on from, on whatever machine."""
        return f"{self.store_uri}/{self._checkpoints_name}"

    @property
    def _checkpoints_name(self) -> str:
        return f"checkpoints/{self.progress_key or self.key}"

    @property
    def is_first_node(self) -> bool:
        return self.settings.node_rank == 0

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps a second job with the same key on this machine from using the same scratch folder.

        The first node of a job holds the lock and writes down whose it is. Its other nodes share the folder with it,
        so they only wait until no other job holds it. The kernel frees the lock of a killed process.
        """
        path = self.work_path.with_name(f"{self.key}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as file:
            if not self.is_first_node:
                self._wait_for_others(file)
                yield
                return
            if not _try_lock(file, fcntl.LOCK_EX):
                self.say(f"waiting: another job runs {self.step} with the same key on this machine")
                fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(0)
            file.write(self.settings.job_id or "")
            file.flush()
            yield

    def _wait_for_others(self, file: TextIO) -> None:
        while not _try_lock(file, fcntl.LOCK_SH):
            file.seek(0)
            if file.read() == (self.settings.job_id or ""):
                return
            time.sleep(POLL_S)
        fcntl.flock(file, fcntl.LOCK_UN)

    def clear_staging(self) -> None:
        """Removes what a killed attempt staged: only this attempt's files may be published."""
        if self.staging_path.exists():
            shutil.rmtree(self.staging_path)
        self.staging_path.mkdir(parents=True)

    def clear_work(self) -> None:
        """Removes all scratch. Another node that still runs may be writing there; what it leaves does no harm."""
        shutil.rmtree(self.work_path, ignore_errors=True)

    def clear_checkpoints(self) -> None:
        """Removes what later attempts would have gone on from."""
        name = self._checkpoints_name
        try:
            store = artifacts.open_store(self.store_uri)
            for file in store.names(name):
                store.remove(file)
        except TransientError as error:
            self.say(f"warning: the checkpoints at {self.checkpoints_uri} remain: {error}")
            return
        if folder := store.local_path(name):
            shutil.rmtree(folder, ignore_errors=True)  # a store in a folder keeps empty ones

    def fetch(self, artifact: ArtifactRef) -> Path:
        """A verified local folder of `artifact`."""
        return artifacts.fetch(artifact, self.settings.cache_path)

    def fetch_file(self, ref: FileRef) -> Path:
        """A verified local path of a file outside the store."""
        return artifacts.fetch_file(ref, self.settings.cache_path)

    def fetch_folder(self, ref: FolderRef) -> Path:
        """A verified local path of a folder outside the store."""
        return artifacts.fetch_folder(ref, self.settings.cache_path)

    def fetch_model(self, model: ModelRef) -> Path:
        """A verified local folder in Hugging Face form."""
        folder = self.fetch(model.artifact) / model.path
        if not (folder / "config.json").is_file():
            raise IntegrityError(f"{model.artifact.uri}: no model at {model.path!r} (config.json is missing)")
        return folder

    def say(self, message: str) -> None:
        """One line of the job's log."""
        print(message, file=sys.stdout, flush=True)

    def progress(self, done: float, total: float, **figures: float | int | str) -> None:
        """A progress line, which the operator and the live view read:

        `progress 120/800 15% eta=42s loss=0.731`
        """
        elapsed = time.monotonic() - self._started
        eta = f" eta={elapsed / done * max(total - done, 0):.0f}s" if done else ""
        share = min(done / total, 1.0) if total else 1.0
        text = "".join(
            f" {name}={value:.4g}" if isinstance(value, float) else f" {name}={value}"
            for name, value in figures.items()
        )
        self.say(f"progress {_number(done)}/{_number(total)} {share:.0%}{eta}{text}")

    def publish_report(self, folder: Path) -> str:
        """Keeps the report of a step that refuses its data, beside where the artifact would have been.

        Returns:
            The folder's URI. It holds no manifest, so it never counts as a result.
        """
        store = artifacts.open_store(self.store_uri)
        entries = file_entries(folder)
        name = f"{self.step}/{self.key}.report/{entries_digest(entries)[:16]}"
        for entry in entries:
            store.upload(folder / entry.path, f"{name}/{entry.path}", entry)
        return f"{store.uri}/{name}"


def _try_lock(file: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _number(value: float) -> str:
    """`1234567` rather than `1.23457e+06`; at most two decimals."""
    return f"{value:.0f}" if value == int(value) else f"{value:.2f}"
