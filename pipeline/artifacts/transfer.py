"""Publishing, finding and fetching artifacts. A manifest's digest is always checked; so are the bytes behind it."""

import uuid
from pathlib import Path

from pydantic import ValidationError

from pipeline.artifacts.digests import entries_digest, file_digest
from pipeline.artifacts.stores import Store, open_store
from pipeline.contracts.base import ArtifactRef
from pipeline.contracts.manifest import FileEntry, Manifest
from pipeline.errors import IntegrityError, SpecError

MANIFEST = "manifest.json"


def split(uri: str) -> tuple[Store, str]:
    """`{store}/{step}/{key}` as the store and `{step}/{key}`."""
    base, step, key = [*uri.rstrip("/").rsplit("/", 2), "", ""][:3]
    if not key:
        raise SpecError(f"{uri!r} is no artifact; expected STORE/STEP/KEY")
    return open_store(base), f"{step}/{key}"


def content_root(entries: tuple[FileEntry, ...]) -> str:
    return entries_digest(entries)[:16]


def publish(uri: str, folder: Path, manifest: Manifest) -> Manifest:
    """Uploads `folder` and then `manifest`. Whoever comes second gets the first one's manifest.

    Raises:
        IntegrityError: the manifest's own digest is wrong.
        TransientError: the store cannot be written now.
    """
    if manifest.digest != manifest.content_digest():
        raise IntegrityError(f"manifest for {uri} claims digest {manifest.digest}, has {manifest.content_digest()}")
    store, name = split(uri)
    for entry in manifest.files:
        store.upload(folder / entry.path, f"{name}/{manifest.root}/{entry.path}", entry)
    if store.create(f"{name}/{MANIFEST}", manifest.model_dump_json(indent=2).encode()):
        return manifest
    return read_manifest(uri)


def find_manifest(uri: str) -> Manifest | None:
    """The manifest at `uri`, its digest checked; None if nothing has been published there."""
    store, name = split(uri)
    data = store.read(f"{name}/{MANIFEST}")
    if data is None:
        return None
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise IntegrityError(f"{uri}/{MANIFEST} is not a manifest: {error}") from error
    if manifest.digest != manifest.content_digest():
        raise IntegrityError(
            f"{uri}/{MANIFEST} was altered: it claims digest {manifest.digest}, its content has"
            f" {manifest.content_digest()}; delete the folder and run the step again"
        )
    return manifest


def read_manifest(artifact: ArtifactRef | str) -> Manifest:
    """Like `find_manifest`, for an artifact that must exist and (given a ref) must be that very one."""
    uri = artifact if isinstance(artifact, str) else artifact.uri
    manifest = find_manifest(uri)
    if manifest is None:
        raise IntegrityError(f"no artifact at {uri}: {MANIFEST} is missing; run the step that makes it")
    if isinstance(artifact, ArtifactRef) and artifact.digest != manifest.digest:
        raise IntegrityError(f"{uri} has digest {manifest.digest}, expected {artifact.digest}")
    return manifest


def fetch(artifact: ArtifactRef, cache_path: Path) -> Path:
    """A local folder with the artifact's files, every byte verified. Read-only by convention.

    Raises:
        IntegrityError: a file is missing or its bytes differ from the manifest.
    """
    manifest = read_manifest(artifact)
    store, name = split(artifact.uri)
    local = store.local_path(f"{name}/{manifest.root}")
    if local is not None:
        verify(local, manifest.files, artifact.uri)
        return local
    target = cache_path / manifest.digest
    if not target.is_dir():
        partial = cache_path / f".{manifest.digest}.{uuid.uuid4().hex}"
        for entry in manifest.files:
            (partial / entry.path).parent.mkdir(parents=True, exist_ok=True)
            store.download(f"{name}/{manifest.root}/{entry.path}", partial / entry.path)
        partial.mkdir(parents=True, exist_ok=True)
        verify(partial, manifest.files, artifact.uri)
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    verify(target, manifest.files, artifact.uri)
    return target


def verify(folder: Path, files: tuple[FileEntry, ...], uri: str) -> None:
    """Compares every file with its entry."""
    for entry in files:
        path = folder / entry.path
        if not path.is_file():
            raise IntegrityError(f"{uri}: {entry.path} is missing")
        actual = file_digest(path)
        if actual != entry.sha256:
            raise IntegrityError(f"{uri}: {entry.path} was altered: sha256 is {actual}, expected {entry.sha256}")
