"""What a step sees of the job it runs in: folders, inputs, progress, and its place among the nodes."""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.artifacts.digests import file_entries
from pipeline.contracts.base import ArtifactRef, FileRef, FolderRef, ModelRef
from pipeline.errors import IntegrityError
from pipeline.settings import Settings


@dataclass(kw_only=True)
class Job:
    """One run of one step.

    A step writes its artifact's files below `staging_path`, keeps what a later attempt can use below `work_path`,
    and returns its Result. On a node other than the first, nothing is published.
    """

    step: str
    key: str
    out_uri: str
    settings: Settings
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
        """Becomes the artifact. Emptied when an attempt starts."""
        return self.work_path / "staging"

    @property
    def is_first_node(self) -> bool:
        return self.settings.node_rank == 0

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
        eta = f" eta={elapsed / done * (total - done):.0f}s" if done else ""
        text = "".join(
            f" {name}={value:.4g}" if isinstance(value, float) else f" {name}={value}"
            for name, value in figures.items()
        )
        self.say(f"progress {done:g}/{total:g} {done / total:.0%}{eta}{text}")

    def publish_report(self, folder: Path) -> str:
        """Keeps the report of a step that refuses its data, beside where the artifact would have been.

        Returns:
            The folder's URI. It holds no manifest, so it never counts as a result.
        """
        store = artifacts.open_store(self.out_uri.rsplit("/", 2)[0])
        name = f"{self.step}/{self.key}.report"
        for entry in file_entries(folder):
            store.upload(folder / entry.path, f"{name}/{entry.sha256[:16]}/{entry.path}", entry)
        return f"{store.uri}/{name}"
