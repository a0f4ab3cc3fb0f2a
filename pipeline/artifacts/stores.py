"""Where bytes lie: a folder (file:///…) for one machine. Every write is atomic; names are relative to the store."""

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.artifacts.digests import CHUNK_BYTES, file_digest
from pipeline.artifacts.uris import file_uri, local_path
from pipeline.contracts.manifest import FileEntry
from pipeline.errors import IntegrityError, SpecError, TransientError, is_transient

PARTIAL = ".partial"
"""Folder, at the root of a file store, of what is being written. A file there that nobody locks is a dead writer's."""

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EOPNOTSUPP, errno.EXDEV)
"""Faults that no retry heals."""


class Store(ABC):
    """A tree of immutable files."""

    uri: str

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The bytes of a small file, or None if there is none."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Writes a small file unless it exists. False, and no change, if it does."""

    @abstractmethod
    def upload(self, source: Path, name: str, entry: FileEntry) -> None:
        """Copies a local file to `name`; harmless to repeat with the same bytes.

        Raises:
            IntegrityError: the file's bytes are not those of `entry`.
        """

    @abstractmethod
    def download(self, name: str, target: Path) -> None:
        """Copies `name` to a local path. Its digest is the caller's to check.

        Raises:
            IntegrityError: there is no such file.
        """

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """The names of all files below `folder`, relative to the store, sorted."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Deletes one file, if it is there."""

    @abstractmethod
    def local_path(self, name: str) -> Path | None:
        """Where the file or folder can be read without copying; None if it is remote."""

    def uri_of(self, name: str) -> str:
        return f"{self.uri}/{name}"


class FileStore(Store):
    """A store in a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = file_uri(root)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _explain(error, f"cannot read {self.root / name}")
            raise

    def create(self, name: str, data: bytes) -> bool:
        target = self.root / name
        with self._writing(target) as (file, temporary):
            file.write(data)
            _sync(file)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            _sync_folder(target.parent)
        return True

    def upload(self, source: Path, name: str, entry: FileEntry) -> None:
        target = self.root / name
        # The digest, not the size: a disk that failed after a rename may leave the right number of wrong bytes.
        if target.is_file() and target.stat().st_size == entry.size_bytes and file_digest(target) == entry.sha256:
            return
        with self._writing(target) as (file, temporary):
            digest = _copy(source, file)
            if digest != entry.sha256:
                raise IntegrityError(f"{source} changed while it was published: {digest}, expected {entry.sha256}")
            _sync(file)
            temporary.replace(target)
            _sync_folder(target.parent)

    def download(self, name: str, target: Path) -> None:
        try:
            shutil.copyfile(self.root / name, target)
        except FileNotFoundError as error:
            raise IntegrityError(f"{self.uri_of(name)} is missing") from error

    def names(self, folder: str) -> list[str]:
        return sorted(
            path.relative_to(self.root).as_posix() for path in (self.root / folder).rglob("*") if not path.is_dir()
        )

    def remove(self, name: str) -> None:
        # Folders stay: removing one could pull it from under another writer.
        (self.root / name).unlink(missing_ok=True)

    def local_path(self, name: str) -> Path | None:
        return self.root / name

    @contextmanager
    def _writing(self, target: Path) -> Iterator[tuple[BinaryIO, Path]]:
        """A locked temporary file for `target`, gone afterwards; `target`'s folder exists."""
        try:
            _make_folder(target.parent)
            _make_folder(self.root / PARTIAL)
            self._sweep()
            file, temporary = self._open_temporary()
            with file:
                try:
                    yield file, temporary
                finally:
                    temporary.unlink(missing_ok=True)
        except OSError as error:
            _explain(error, f"cannot write {target}")
            raise

    def _open_temporary(self) -> tuple[BinaryIO, Path]:
        while True:
            temporary = self.root / PARTIAL / uuid.uuid4().hex
            file = temporary.open("xb")
            fcntl.flock(file, fcntl.LOCK_EX)
            if temporary.exists():  # else a sweep came between opening and locking
                return file, temporary
            file.close()

    def _sweep(self) -> None:
        """Removes what killed writers left. The living hold their locks."""
        for leftover in (self.root / PARTIAL).iterdir():
            with suppress(FileNotFoundError, BlockingIOError), leftover.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()


def open_store(uri: str) -> Store:
    """The store at `uri`: file:///folder, or s3://bucket/prefix.

    Raises:
        SpecError: another scheme, or no bucket.
    """
    if uri.startswith("s3://"):
        from pipeline.artifacts.s3 import S3Store  # boto3 takes a second to import

        return S3Store(uri)
    root = local_path(uri) if uri.startswith("file://") else None
    if root is None:
        raise SpecError(f"the store {uri!r} is of an unknown kind; expected file:///folder or s3://bucket/prefix")
    return FileStore(root)


def _explain(error: OSError, what: str) -> None:
    """Raises a fault of the file system as one of ours, with what to do; returns if it looks like a bug."""
    if error.errno in UNWRITABLE:
        raise SpecError(
            f"{what}: {error.strerror}; the store's folder must be writable for this user and allow hard links"
        ) from error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise TransientError(f"{what}: {error.strerror}; free some space, then run the step again") from error
    if is_transient(error):
        raise TransientError(f"{what}: {error}; see to the folder's disk, then run the step again") from error


def _copy(source: Path, target: BinaryIO) -> str:
    """Copies the bytes of `source` and returns their digest."""
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)
