"""sha256 of files and folders, read in chunks."""

import hashlib
from pathlib import Path

from pipeline.contracts.base import canonical_json, sha256_hex
from pipeline.contracts.manifest import FileEntry
from pipeline.errors import DataError

CHUNK_BYTES = 1 << 20


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entries(folder: Path) -> tuple[FileEntry, ...]:
    """Every file below `folder`, sorted by path. A link to a file counts as the file.

    Raises:
        DataError: something that is neither a file nor a real folder, and so would be lost.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is no file: links to folders, broken links and devices cannot be kept")
    return tuple(
        FileEntry(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256=file_digest(path))
        for path in paths
    )


def entries_digest(entries: tuple[FileEntry, ...]) -> str:
    """One digest over the paths, sizes and bytes of `entries`, whatever their order."""
    return sha256_hex(canonical_json(sorted([entry.path, entry.size_bytes, entry.sha256] for entry in entries)))


def folder_digest(folder: Path) -> str:
    return entries_digest(file_entries(folder))
