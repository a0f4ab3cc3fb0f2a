"""Publishing and finding artifacts. A manifest's own digest is always checked."""

from pathlib import Path

from pydantic import ValidationError

from pipeline.artifacts.digests import entries_digest
from pipeline.artifacts.stores import Store, open_store
from pipeline.contracts.base import ArtifactRef
from pipeline.contracts.manifest import FileEntry, Manifest
from pipeline.errors import IntegrityError, SpecError

MANIFEST = "manifest.json"


def split(uri: str) -> tuple[Store, str]:
    """`{store}/{step}/{key}` as the store and `{step}/{key}`.

    Raises:
        SpecError: the URI has another form, or a store that we don't know.
    """
    parts = uri.rstrip("/").rsplit("/", 2)
    if len(parts) != 3 or not all(parts):
        raise SpecError(f"{uri!r} is no artifact; expected STORE/STEP/KEY")
    return open_store(parts[0]), f"{parts[1]}/{parts[2]}"


def content_root(entries: tuple[FileEntry, ...]) -> str:
    return entries_digest(entries)[:16]


def publish(uri: str, folder: Path, manifest: Manifest) -> Manifest:
    """Uploads `folder` and then `manifest`. Whoever comes second gets the first one's manifest.

    Killed at any moment, it leaves an artifact that exists or one that does not; a later call finishes it, reuses
    the files that are there, and removes those of attempts with other content.

    Raises:
        IntegrityError: the manifest does not describe `folder`.
        SpecError: the store refuses us.
        TransientError: the store cannot be written now.
    """
    if manifest.digest != manifest.content_digest():
        raise IntegrityError(f"manifest for {uri} claims digest {manifest.digest}, has {manifest.content_digest()}")
    store, name = split(uri)
    for entry in manifest.files:
        store.upload(folder / entry.path, f"{name}/{manifest.root}/{entry.path}", entry)
    created = store.create(f"{name}/{MANIFEST}", manifest.model_dump_json(indent=2).encode())
    published = manifest if created else read_manifest(uri)
    _remove_leftovers(store, name, published)
    return published


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
    if f"{manifest.step}/{manifest.key}" != name:
        raise IntegrityError(f"{uri}/{MANIFEST} belongs to {manifest.step}/{manifest.key}; it was copied or moved here")
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


def _remove_leftovers(store: Store, name: str, published: Manifest) -> None:
    """Deletes the files of killed or beaten attempts, which nothing refers to once the manifest stands."""
    kept = {f"{name}/{MANIFEST}", *(f"{name}/{published.root}/{entry.path}" for entry in published.files)}
    for leftover in store.names(name):
        if leftover not in kept:
            store.remove(leftover)
