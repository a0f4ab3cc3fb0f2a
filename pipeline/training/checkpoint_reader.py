"""Reads a checkpoint into an engine, whatever number of ranks and stage of ZeRO wrote it.

A rank reads the parts that hold something of what it holds itself, and no others. Every part is hashed before it is
used; the files hold numbers and nothing else (safetensors).
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from pipeline.artifacts import Store
from pipeline.artifacts.digests import file_digest
from pipeline.errors import IntegrityError, SlipwayError, SpecError
from pipeline.training import fragments
from pipeline.training.checkpoint_index import Index, Part, Piece, advice, step_name
from pipeline.training.fragments import Fragment
from pipeline.training.place import Place

T = TypeVar("T")


def read_into(engine: Any, place: Place, index: Index, *, store: Store, folder: str, scratch: Path) -> None:
    """Gives `engine` the state that the checkpoint holds; every rank calls it.

    Args:
        folder: of the training's checkpoints, in `store`.
        scratch: a folder for parts that have to be downloaded.

    Raises:
        SpecError: it is of another model, or its layers are cut up otherwise.
        IntegrityError: a part is missing or damaged, or the parts together lack something.

    What one rank finds is raised on all of them.
    """
    name = step_name(folder, index.step)
    parts = [part for part in index.parts if (part.stage, part.slice) == (place.stage, place.slice)]

    def check() -> None:
        check_cut(index, place, store.uri_of(name))
        check_shapes(fragments.shapes_of(engine), parts, store.uri_of(name))

    def read() -> list[dict[str, Tensor]]:
        reader = Reader(held)
        for part in parts:
            if reader.wants(part):
                downloaded = scratch / f"read-{place.rank:04d}.safetensors"
                reader.read(fetch_part(part, store, folder, index.step, downloaded), part)
                downloaded.unlink(missing_ok=True)
        if missing := reader.missing():
            raise IntegrityError(f"{store.uri_of(name)} lacks {missing}; {advice(store, folder, index.step)}")
        return reader.values

    together(check)
    fragments.begin_writing(engine)
    fragments.begin_state(engine, index.adam_step)
    held = fragments.held_fragments(engine)
    for fragment, values in zip(held, together(read), strict=True):
        fragment.write(values)
    fragments.end_writing(engine)
    fragments.set_loss_scale(engine, index.loss_scale)
    distributed.barrier()


def together(do: Callable[[], T]) -> T:
    """What `do` gives on this rank, once it is done on all of them.

    Raises:
        SlipwayError: that of the first rank that raised one; on all ranks, so that none waits for it.
    """
    done: list[T] = []
    error: SlipwayError | None = None
    try:
        done.append(do())
    except SlipwayError as found:
        error = found
    errors: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(errors, error)
    for first in filter(None, errors):
        raise first
    return done[0]


def check_cut(index: Index, place: Place, uri: str) -> None:
    """Raises: SpecError: the layers lie on ranks otherwise."""
    wanted = (place.parallelism.tensor, place.parallelism.pipeline)
    if (index.tensor, index.pipeline) != wanted:
        raise SpecError(
            f"the checkpoint {uri} was written with tensor {index.tensor} and pipeline {index.pipeline}, and this"
            f" training has tensor {wanted[0]} and pipeline {wanted[1]}: only zero, sequence and the number of ranks"
            " may change; train with the former, or delete the checkpoint to begin anew"
        )


def check_shapes(model: dict[str, tuple[int, ...]], parts: Iterable[Part], uri: str) -> None:
    """Raises: SpecError: the parameters have other names or shapes than the model's."""
    kept = {piece.name: piece.shape for part in parts for piece in part.pieces}
    for name in sorted(kept.keys() | model.keys()):
        if kept.get(name) != model.get(name):
            here = f"of shape {model[name]}" if name in model else "unknown"
            there = f"of shape {kept[name]}" if name in kept else "unknown"
            raise SpecError(
                f"the checkpoint {uri} is of another model: the parameter {name} is {there} to it and {here} to the"
                " model that is to be trained; give the base model that it was written with, or delete the checkpoint"
            )


def fetch_part(part: Part, store: Store, folder: str, step: int, target: Path) -> Path:
    """Where the part can be read, with the right bytes: in the store itself, or else at `target`.

    Raises:
        IntegrityError: it is missing, or has other bytes.
    """
    name = f"{step_name(folder, step)}/{part.file.path}"
    path = store.local_path(name)
    if path is None:
        path = target
        store.download(name, path)
    digest = file_digest(path) if path.is_file() else None
    if digest != part.file.sha256:
        found = f"has digest {digest}, expected {part.file.sha256}" if digest else "is missing"
        raise IntegrityError(f"{store.uri_of(name)} {found}; {advice(store, folder, step)}")
    return path


class Reader:
    """Fills arrays, one for each fragment and kind, from parts."""

    def __init__(self, held: list[Fragment]) -> None:
        self._held = {fragment.name: (fragment, number) for number, fragment in enumerate(held)}
        self.values = [{kind: torch.empty(fragment.size) for kind in fragments.KINDS} for fragment in held]
        self._found = [0] * len(held)

    def wants(self, part: Part) -> bool:
        return any(self._overlap(piece) for piece in part.pieces)

    def read(self, path: Path, part: Part) -> None:
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            for piece in part.pieces:
                if overlap := self._overlap(piece):
                    number, begin, end = overlap
                    start = self._fragment(piece.name).offset
                    for kind in fragments.KINDS:
                        whole = file.get_slice(f"{kind}/{piece.name}")
                        values: Tensor = whole[begin - piece.offset : end - piece.offset]
                        self.values[number][kind][begin - start : end - start] = values
                    self._found[number] += end - begin

    def missing(self) -> str:
        """Says what no part held; empty if there is no such thing. Parts do not overlap each other."""
        for fragment, number in self._held.values():
            if self._found[number] != fragment.size:
                return f"{fragment.size - self._found[number]} of {fragment.size} elements of {fragment.name}"
        return ""

    def _fragment(self, name: str) -> Fragment:
        return self._held[name][0]

    def _overlap(self, piece: Piece) -> tuple[int, int, int] | None:
        """Which fragment wants something of `piece`, and from which element to which."""
        fragment, number = self._held.get(piece.name, (None, 0))
        if fragment is None:
            return None
        begin = max(fragment.offset, piece.offset)
        end = min(fragment.offset + fragment.size, piece.offset + piece.size)
        return (number, begin, end) if begin < end else None
