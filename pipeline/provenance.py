"""What made an artifact: the code, the installed packages, the inputs; written into its manifest."""

import functools
import hashlib
from importlib import metadata

from pydantic import BaseModel

from pipeline.artifacts.digests import file_entries
from pipeline.artifacts.transfer import content_root
from pipeline.code_version import code_version
from pipeline.contracts.base import Content, Result, Spec
from pipeline.contracts.manifest import Manifest, manifest_digest
from pipeline.job import Job


def draft_manifest(job: Job, spec: Spec, result: Result, *, started_at: str, duration_s: float) -> Manifest:
    """The manifest of what lies in the job's staging folder, to which result.json is added."""
    (job.staging_path / "result.json").write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    files = file_entries(job.staging_path)
    dumped = result.model_dump(mode="json")
    return Manifest(
        step=job.step,
        key=job.key,
        digest=manifest_digest(job.step, job.key, files, dumped),
        root=content_root(files),
        files=files,
        spec=spec.model_dump(mode="json"),
        result=dumped,
        inputs=tuple(sorted(input_digests(spec))),
        code_version=code_version(),
        environment_digest=environment_digest(),
        image=job.settings.image,
        seeds=job.seeds,
        started_at=started_at,
        duration_s=round(duration_s, 3),
        figures=job.figures,
    )


@functools.cache
def environment_digest() -> str:
    """Over the names and versions of every installed package.

    A half-removed package leaves a folder without a name behind: no import finds it, and it counts for nothing.
    """
    whole = (dist for dist in metadata.distributions() if dist.read_text("METADATA") or dist.read_text("PKG-INFO"))
    installed = sorted({f"{dist.metadata['Name'].lower()}=={dist.metadata['Version']}" for dist in whole})
    return hashlib.sha256("\n".join(installed).encode()).hexdigest()


def input_digests(value: object) -> set[str]:
    """The digests of all content that a spec refers to, at any depth."""
    if isinstance(value, Content):
        return {value.digest}
    if isinstance(value, BaseModel):
        return input_digests(tuple(getattr(value, name) for name in type(value).model_fields))
    if isinstance(value, dict):
        return input_digests(tuple(value.values()))
    if isinstance(value, tuple | list):
        return {digest for item in value for digest in input_digests(item)}
    return set()
