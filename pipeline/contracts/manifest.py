"""The manifest: written last, and the only proof that an artifact exists."""

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from pipeline.contracts.base import ArtifactRef, Contract, Digest, RelativePath, canonical_json, sha256_hex


class FileEntry(Contract):
    """One file of an artifact; `path` is relative to the artifact's root, with forward slashes."""

    path: RelativePath
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Digest


class Manifest(Contract):
    """Everything about one artifact.

    `digest` covers step, key, files, and result: what a reader builds on. It leaves out the rest (times, machine,
    image, run ids), so that the same spec gives the same digest wherever it ran.
    """

    step: str
    key: Digest
    digest: Digest
    root: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    """Folder of the files, relative to the manifest; named after the content so that racing writers never mix."""
    files: tuple[FileEntry, ...]
    spec: dict[str, Any]
    result: dict[str, Any]
    inputs: tuple[str, ...] = ()
    """Digests of the content that the step read, as found in its spec."""
    code_version: str
    environment_digest: Digest
    image: str | None = None
    """The container image that the step ran in, `name@sha256:…`; None for a process of the machine."""
    seeds: dict[str, int] = Field(default_factory=dict)
    started_at: str
    """UTC, ISO 8601"""
    duration_s: float
    figures: dict[str, Any] = Field(default_factory=dict)
    """What was measured on the way: throughput, peak memory, tracking run ids."""

    def content_digest(self) -> str:
        """The digest recomputed from the fields that it covers."""
        return manifest_digest(self.step, self.key, self.files, self.result)

    def ref(self, uri: str) -> ArtifactRef:
        return ArtifactRef(uri=uri, digest=self.digest)


def manifest_digest(step: str, key: str, files: tuple[FileEntry, ...], result: dict[str, Any]) -> str:
    return sha256_hex(
        canonical_json(
            {
                "step": step,
                "key": key,
                "files": sorted([file.path, file.size_bytes, file.sha256] for file in files),
                "result": result,
            }
        )
    )
