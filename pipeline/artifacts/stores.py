"""Where bytes lie: a folder (file:///…) for one machine. Every write is atomic; names are relative to the store."""

import os
import shutil
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.contracts.manifest import FileEntry
from pipeline.errors import SpecError, TransientError


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
        """Copies a local file to `name`; harmless to repeat with the same bytes."""

    @abstractmethod
    def download(self, name: str, target: Path) -> None:
        """Copies `name` to a local path. Its digest is the caller's to check."""

    @abstractmethod
    def local_path(self, name: str) -> Path | None:
        """Where the file or folder can be read without copying; None if it is remote."""


class FileStore(Store):
    """A store in a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = f"file://{root}"

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def create(self, name: str, data: bytes) -> bool:
        target = self.root / name
        temporary = self._temporary(target)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, target)
        except FileExistsError:
            return False
        except OSError as error:
            raise TransientError(f"cannot write {target}: {error}; free space or repair the folder") from error
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def upload(self, source: Path, name: str, entry: FileEntry) -> None:
        target = self.root / name
        if target.is_file() and target.stat().st_size == entry.size_bytes:
            return
        temporary = self._temporary(target)
        try:
            shutil.copyfile(source, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError as error:
            raise TransientError(f"cannot write {target}: {error}; free space or repair the folder") from error
        finally:
            temporary.unlink(missing_ok=True)

    def download(self, name: str, target: Path) -> None:
        shutil.copyfile(self.root / name, target)

    def local_path(self, name: str) -> Path | None:
        return self.root / name

    def _temporary(self, target: Path) -> Path:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TransientError(f"cannot make {target.parent}: {error}") from error
        return target.parent / f".{target.name}.{uuid.uuid4().hex}"


def open_store(uri: str) -> Store:
    """The store at `uri`.

    Raises:
        SpecError: a scheme other than file:// and s3://.
    """
    parts = urlsplit(uri)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return FileStore(Path(parts.path))
    raise SpecError(f"the store {uri!r} is of an unknown kind; expected file:///folder or s3://bucket/prefix")
