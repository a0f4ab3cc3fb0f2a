"""Checkpoints in the artifact store, written beside the training and read by any number of ranks.

A save copies the state to the host's memory, which is all that the training waits for; a thread writes and uploads it.
When every rank's part is in the store, which the ranks tell each other where the loop makes them exchange anyway, the
first rank completes the checkpoint. One save is under way at a time.
"""

import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from pipeline.artifacts import Store
from pipeline.artifacts.transfer import split
from pipeline.errors import SlipwayError, TransientError, is_transient
from pipeline.training import checkpoint_index, fragments
from pipeline.training.checkpoint_index import Index, Part, Piece
from pipeline.training.checkpoint_reader import read_into, together
from pipeline.training.place import Place

_PENDING, _DONE, _FAILED = range(3)

History = list[dict[str, float]]


@dataclass
class _Save:
    """One that is under way."""

    step: int
    adam_step: int
    loss_scale: dict[str, float]
    history: History
    task: "Future[Any]"
    """What this rank still has to do: write its part, and then, on the first rank, complete the checkpoint."""
    written: bool = False
    """All parts are in the store."""


@dataclass
class Checkpoints:
    """Of one training, seen by one rank. Every rank calls the same methods in the same order."""

    uri: str
    """{store}/checkpoints/{progress key}"""
    scratch: Path
    """On this node's disk, for a part on its way to the store."""
    place: Place
    keep: int
    stalled_s: float = 0.0
    """How long the training has waited for saves."""
    _save: _Save | None = None
    _buffers: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scratch.mkdir(parents=True, exist_ok=True)
        self._store: Store
        self._store, self._folder = split(self.uri)
        self._pool = ThreadPoolExecutor(1, "checkpoint")

    def resume(self, engine: Any) -> tuple[int, History]:
        """Loads the newest complete checkpoint.

        Returns:
            Its step and the loop's history; 0 and nothing if there is none.

        Raises:
            SpecError: it is of another model, or its layers are cut up otherwise.
            IntegrityError: its bytes are not what its index says.
        """
        found: list[Any] = [together(self._find_newest)]
        distributed.broadcast_object_list(found, src=0)
        index: Index | None = found[0]
        if index is None:
            return 0, []
        read_into(engine, self.place, index, store=self._store, folder=self._folder, scratch=self.scratch)
        return index.step, index.history

    def _find_newest(self) -> Index | None:
        """On the first rank."""
        steps = checkpoint_index.steps(self._store, self._folder) if self.place.rank == 0 else []
        return checkpoint_index.read_index(self._store, self._folder, steps[-1]) if steps else None

    def save(self, engine: Any, step: int, history: History) -> None:
        """Begins the checkpoint of `step`; the state may change as soon as this returns."""
        began = time.monotonic()
        self.finish()
        owned = fragments.owned_fragments(engine, self.place)
        tensors = self._copy({f"{kind}/{f.name}": f.tensors[kind] for f in owned for kind in fragments.KINDS})
        pieces = tuple(Piece(name=f.name, shape=f.shape, offset=f.offset, size=f.size) for f in owned)
        task = self._pool.submit(self._write, step, tensors, pieces)
        self._save = _Save(step, fragments.adam_step(engine), fragments.loss_scale(engine), list(history), task)
        self.stalled_s += time.monotonic() - began

    def settle(self) -> None:
        """Asks all ranks how far the save under way is, and takes it one stage further if all are ready.

        Raises:
            TransientError, SpecError: some rank could not write; raised on all of them.
        """
        save = self._save
        if save is None:
            return
        states = self._exchange(_state(save.task))
        if _FAILED in states:
            self._save = None
            raise self._failure(save, states)
        if _PENDING in states:
            return
        if save.written:
            self._save = None
            return
        parts: list[Any] | None = [None] * self.place.world_size if self.place.rank == 0 else None
        distributed.gather_object(save.task.result(), parts, dst=0)
        save.written = True
        if parts is not None:
            save.task = self._pool.submit(self._complete, save, parts)

    def finish(self) -> None:
        """Waits until the save under way, if any, is a checkpoint."""
        while self._save is not None:
            wait([self._save.task])
            self.settle()

    def _copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Into memory that is allocated once: fresh pages cost more than the copy."""
        on_device = torch.cuda.is_available()
        for name, tensor in tensors.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape:
                buffer = self._buffers[name] = torch.empty(tensor.shape, dtype=torch.float32, pin_memory=on_device)
            buffer.copy_(tensor, non_blocking=True)
        if on_device:
            torch.cuda.synchronize()
        return {name: self._buffers[name] for name in tensors}

    def _write(self, step: int, tensors: dict[str, Tensor], pieces: Iterable[Piece]) -> Part:
        """In the thread: this rank's part, into the store."""
        from safetensors.torch import save_file

        stem = f"rank-{self.place.rank:04d}"
        path = self.scratch / f"{stem}.safetensors"
        save_file(tensors, path)
        folder = checkpoint_index.step_name(self._folder, step)
        entry = checkpoint_index.upload_named(self._store, path, folder, stem=stem)
        path.unlink()
        return Part(file=entry, stage=self.place.stage, slice=self.place.slice, pieces=tuple(pieces))

    def _complete(self, save: _Save, parts: Iterable[Part]) -> None:
        """In the first rank's thread."""
        index = Index(
            step=save.step,
            adam_step=save.adam_step,
            tensor=self.place.parallelism.tensor,
            pipeline=self.place.parallelism.pipeline,
            world_size=self.place.world_size,
            loss_scale=save.loss_scale,
            history=save.history,
            parts=tuple(parts),
        )
        checkpoint_index.commit(self._store, self._folder, index, self.scratch)
        checkpoint_index.remove_old(self._store, self._folder, keep=self.keep)

    def _exchange(self, mine: int) -> list[int]:
        """Each rank's number."""
        states = torch.zeros(self.place.world_size, dtype=torch.int64)
        states[self.place.rank] = mine
        if torch.cuda.is_available():
            states = states.cuda()
        distributed.all_reduce(states)
        return [int(state) for state in states]

    def _failure(self, save: _Save, states: list[int]) -> Exception:
        """This rank's own error, or word of another's."""
        error = save.task.exception() if states[self.place.rank] == _FAILED else None
        failed = states.index(_FAILED)
        words: list[Any] = [f"{error}" if self.place.rank == failed else None]
        distributed.broadcast_object_list(words, src=failed)
        what = f"the checkpoint of step {save.step} could not be written by rank {failed}: {words[0]}"
        if error is None or (isinstance(error, OSError) and is_transient(error)):
            return TransientError(what)
        if isinstance(error, SlipwayError):
            return type(error)(what)
        return RuntimeError(what)


def _state(task: "Future[Any]") -> int:
    if not task.done():
        return _PENDING
    return _FAILED if task.exception() else _DONE


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout's randomness depends on the step alone, not on what came before it: a resumed run draws the same."""
    number = (seed * 1_000_003 + step) * 4099 + rank
    torch.default_generator.manual_seed(number)  # torch.manual_seed also asks for every kind of accelerator
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(number)
