"""Publishes a folder as an artifact of any step, for tests that start in the middle of a release."""

from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.artifacts.digests import file_entries
from pipeline.artifacts.transfer import content_root
from pipeline.contracts.base import ArtifactRef, canonical_json, sha256_hex
from pipeline.contracts.manifest import Manifest, manifest_digest


def publish_folder(store_uri: str, step: str, folder: Path, result: dict[str, Any] | None = None) -> ArtifactRef:
    """The artifact of `step` with the files of `folder`, as if the step had run."""
    files = file_entries(folder)
    key = sha256_hex(canonical_json([step, content_root(files), result or {}]))
    manifest = Manifest(
        step=step,
        key=key,
        digest=manifest_digest(step, key, files, result or {}),
        root=content_root(files),
        files=files,
        spec={},
        result=result or {},
        code_version="0",
        environment_digest="0" * 64,
        started_at="2026-01-01T00:00:00+00:00",
        duration_s=0.0,
    )
    uri = f"{store_uri}/{step}/{key}"
    return artifacts.publish(uri, folder, manifest).ref(uri)
