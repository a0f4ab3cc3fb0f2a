"""Local, verified copies of what a step reads: artifacts, and files and folders outside the store.

What is local already is verified where it lies; what is remote is kept in the cache, by digest. Every byte is hashed
each time, since a disk or a person may have changed it since.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from pipeline.artifacts.digests import file_digest, folder_digest
from pipeline.artifacts.locks import locked
from pipeline.artifacts.stores import Store, open_store
from pipeline.artifacts.transfer import read_manifest, split
from pipeline.artifacts.uris import local_path
from pipeline.contracts.base import ArtifactRef, FileRef, FolderRef
from pipeline.contracts.manifest import FileEntry
from pipeline.errors import IntegrityError


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

    def download(folder: Path) -> None:
        for entry in manifest.files:
            _download(store, f"{name}/{manifest.root}/{entry.path}", folder / entry.path, digest=entry.sha256)

    return _cached(cache_path / manifest.digest, download, lambda folder: verify(folder, manifest.files, artifact.uri))


def fetch_file(ref: FileRef, cache_path: Path) -> Path:
    """A local path of a file that a plan pinned.

    Raises:
        IntegrityError: it is gone, or its bytes have changed since.
    """
    path = local_path(ref.uri)
    if path is not None:
        _verify_file(path, ref)
        return path
    base, _, name = ref.uri.rpartition("/")
    store = open_store(base)
    folder = _cached(
        cache_path / "files" / ref.digest,
        lambda folder: _download(store, name, folder / name, digest=ref.digest),
        lambda folder: _verify_file(folder / name, ref),
    )
    return folder / name


def fetch_folder(ref: FolderRef, cache_path: Path) -> Path:
    """A local path of a folder that a plan pinned.

    Raises:
        IntegrityError: it is gone, or something in it has changed since.
    """
    path = local_path(ref.uri)
    if path is not None:
        _verify_folder(path, ref)
        return path
    return _cached(
        cache_path / "folders" / ref.digest,
        lambda folder: download_folder(ref.uri, folder),
        lambda folder: _verify_folder(folder, ref),
    )


def download_folder(uri: str, target: Path) -> None:
    """Copies all files below a remote `uri` into `target`."""
    base, _, prefix = uri.rstrip("/").rpartition("/")
    store = open_store(base)
    for name in store.names(prefix):
        path = target / name.removeprefix(f"{prefix}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        store.download(name, path)


def verify(folder: Path, files: tuple[FileEntry, ...], uri: str) -> None:
    """Compares every file with its entry."""
    for entry in files:
        path = folder / entry.path
        if not path.is_file():
            raise IntegrityError(f"{uri}: {entry.path} is missing; delete the artifact and run its step again")
        actual = file_digest(path)
        if actual != entry.sha256:
            raise IntegrityError(
                f"{uri}: {entry.path} was altered: sha256 is {actual}, expected {entry.sha256};"
                " delete the artifact and run its step again"
            )


def _cached(target: Path, download: Callable[[Path], None], check: Callable[[Path], None]) -> Path:
    """`target`, downloaded unless a good copy is there. One process of a machine downloads, the others wait.

    A killed download leaves `.{name}.partial`, which the next one continues, file by file.
    """
    with locked(target.with_name(f".{target.name}.lock")):
        if target.is_dir():
            try:
                check(target)
            except IntegrityError as error:
                print(f"dropped a damaged copy from the cache: {error}", flush=True)
                shutil.rmtree(target)
            else:
                return target
        partial = target.with_name(f".{target.name}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        download(partial)
        try:
            check(partial)
        except IntegrityError:
            shutil.rmtree(partial)
            raise
        partial.rename(target)
        return target


def _download(store: Store, name: str, target: Path, *, digest: str) -> None:
    if target.is_file() and file_digest(target) == digest:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    store.download(name, target)


def _verify_file(path: Path, ref: FileRef) -> None:
    if not path.is_file():
        raise IntegrityError(f"{ref.uri} is gone since the release was planned; put it back or start a new release")
    actual = file_digest(path)
    if actual != ref.digest:
        raise IntegrityError(
            f"{ref.uri} has changed since the release was planned: sha256 is {actual}, expected {ref.digest};"
            " start a new release to use the new content"
        )


def _verify_folder(path: Path, ref: FolderRef) -> None:
    actual = folder_digest(path) if path.is_dir() else "missing"
    if actual != ref.digest:
        raise IntegrityError(
            f"{ref.uri} has changed since the release was planned: its digest is {actual}, expected {ref.digest};"
            " start a new release to use the new content"
        )
