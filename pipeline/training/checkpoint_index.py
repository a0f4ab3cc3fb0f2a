"""Checkpoints as they lie in the artifact store.

{store}/checkpoints/{progress key}/step-00000200/
  rank-0003-0123456789abcdef.safetensors   what that rank owned: {kind}/{parameter}, flat, in fp32
  index-0123456789abcdef.json              which parts there are, with their digests, and the loop's state
  complete                                 the index's digest; created last, and never overwritten

The sixteen digits begin a file's digest, so a gang that is thought dead and still writes spoils nothing. A step without
`complete` is no checkpoint.
"""

from pathlib import Path

from pydantic import ValidationError

from pipeline.artifacts import Store
from pipeline.artifacts.digests import file_digest
from pipeline.contracts.base import Contract, sha256_hex
from pipeline.contracts.manifest import FileEntry
from pipeline.errors import IntegrityError

PREFIX = "step-"
COMPLETE = "complete"


class Piece(Contract):
    """Elements `offset` to `offset + size` of one parameter."""

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int


class Part(Contract):
    """What one rank has written."""

    file: FileEntry
    stage: int
    """Of the pipeline."""
    slice: int
    """Of every layer."""
    pieces: tuple[Piece, ...]


class Index(Contract):
    """One checkpoint."""

    step: int
    adam_step: int
    tensor: int
    pipeline: int
    world_size: int
    """Of those who wrote it; whoever reads it may be fewer or more."""
    loss_scale: dict[str, float]
    history: list[dict[str, float]]
    parts: tuple[Part, ...]


def step_name(folder: str, step: int) -> str:
    return f"{folder}/{PREFIX}{step:08d}"


def upload_named(store: Store, path: Path, folder: str, *, stem: str) -> FileEntry:
    """Uploads a file under a name that ends with the beginning of its digest."""
    digest = file_digest(path)
    entry = FileEntry(path=f"{stem}-{digest[:16]}{path.suffix}", size_bytes=path.stat().st_size, sha256=digest)
    store.upload(path, f"{folder}/{entry.path}", entry)
    return entry


def commit(store: Store, folder: str, index: Index, scratch: Path) -> None:
    """Makes the parts that `index` lists a checkpoint."""
    path = scratch / "index.json"
    path.write_text(index.model_dump_json())
    entry = upload_named(store, path, step_name(folder, index.step), stem="index")
    store.create(f"{step_name(folder, index.step)}/{COMPLETE}", entry.sha256.encode())
    path.unlink()


def steps(store: Store, folder: str) -> list[int]:
    """Of the complete checkpoints, rising."""
    return _steps(store.names(folder))


def read_index(store: Store, folder: str, step: int) -> Index:
    """The index of a complete checkpoint.

    Raises:
        IntegrityError: it is gone, or has other bytes than `complete` says.
    """
    name = step_name(folder, step)
    digest = (store.read(f"{name}/{COMPLETE}") or b"").decode(errors="replace")
    file = f"{name}/index-{digest[:16]}.json"
    data = store.read(file)
    if data is None or sha256_hex(data) != digest:
        found = "is missing" if data is None else f"has digest {sha256_hex(data)}, expected {digest}"
        raise IntegrityError(f"{store.uri_of(file)} {found}; {advice(store, folder, step)}")
    try:
        return Index.model_validate_json(data)
    except ValidationError as error:
        raise IntegrityError(
            f"{store.uri_of(file)} is no index of a checkpoint: {error}; {advice(store, folder, step)}"
        ) from error


def remove_old(store: Store, folder: str, *, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints, and what unfinished ones before those have left."""
    names = store.names(folder)
    kept = _steps(names)[-keep:]
    for name in sorted(names, key=lambda name: not name.endswith(f"/{COMPLETE}")):
        if kept and _step(name) < kept[0]:
            store.remove(name)


def advice(store: Store, folder: str, step: int) -> str:
    return f"delete {store.uri_of(step_name(folder, step))} to go on from the checkpoint before it"


def _steps(names: list[str]) -> list[int]:
    return sorted(_step(name) for name in names if name.endswith(f"/{COMPLETE}"))


def _step(name: str) -> int:
    return int(name.rsplit("/", 2)[1].removeprefix(PREFIX))
