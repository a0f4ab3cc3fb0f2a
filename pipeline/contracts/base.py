"""The base of every spec and result, references to content, and the key that makes a step reusable."""

import hashlib
import json
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A sha256 in lower-case hex."""


def _stays_inside(path: str) -> str:
    parts = path.split("/")
    if path != "." and (not path or "\\" in path or "\0" in path or not {"", ".", ".."}.isdisjoint(parts)):
        raise ValueError(f"{path!r} is not a plain relative path such as models/w8a8")
    return path


RelativePath = Annotated[str, AfterValidator(_stays_inside)]
"""With forward slashes, and unable to leave its folder: a manifest from elsewhere must not write where it likes."""


class Contract(BaseModel):
    """Immutable, and closed to fields that it does not know. Infinity and NaN have no canonical form."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    outside_key: ClassVar[frozenset[str]] = frozenset()
    """Fields that say where and with what a step runs, not what it makes: no key depends on them."""
    outside_progress_key: ClassVar[frozenset[str]] = frozenset()
    """Further fields that may change between two attempts, of which the second goes on where the first was: they say
    how the work is divided, which changes no more of the result than how sums are rounded."""


class Content(Contract):
    """Bytes that exist somewhere: where they are now, and which bytes they are.

    Only the digest enters a step's key, so moving a store changes no key.
    """

    uri: str
    """file:///… or s3://bucket/prefix"""
    digest: Digest


class FileRef(Content):
    """One file; `digest` is the sha256 of its bytes."""

    size_bytes: int


class FolderRef(Content):
    """A folder outside the store (a base model, say); `digest` is `artifacts.digests.folder_digest`."""


class ArtifactRef(Content):
    """A published artifact: `uri` is `{store}/{step}/{key}`, `digest` is its manifest's `digest`."""


class ModelRef(Contract):
    """A model folder inside an artifact, e.g. `path="w8a8"` of a compress artifact; "." is its root."""

    artifact: ArtifactRef
    path: RelativePath = "."


def canonical_json(value: Any) -> bytes:
    """Sorted keys, no white space, UTF-8, no NaN: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _identity(value: Any, *, progress: bool = False) -> Any:
    """`value` as plain JSON with every `Content` reduced to its digest.

    Args:
        progress: leave out what may change between two attempts, too.
    """
    if isinstance(value, Content):
        return value.digest
    if isinstance(value, Contract):
        outside = value.outside_key | value.outside_progress_key if progress else value.outside_key
        names = [name for name in type(value).model_fields if name not in outside]
        return {name: _identity(getattr(value, name), progress=progress) for name in names}
    if isinstance(value, dict):
        return {str(name): _identity(item, progress=progress) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_identity(item, progress=progress) for item in value]
    return value


class Spec(Contract):
    """What a step is asked to do. Everything in it changes the result, or does not belong in it."""


class Result(Contract):
    """What a step found out. It enters the artifact's digest: no times, no throughput, no run ids."""


def step_key(step: str, version: int, spec: Spec) -> str:
    """The sha256 under which a step's artifact is published and found again."""
    return sha256_hex(canonical_json({"step": step, "version": version, "spec": _identity(spec)}))


def progress_key(step: str, version: int, spec: Spec) -> str:
    """The sha256 under which a step keeps what a later attempt goes on from, though the work be divided otherwise."""
    return sha256_hex(canonical_json({"step": step, "version": version, "spec": _identity(spec, progress=True)}))
