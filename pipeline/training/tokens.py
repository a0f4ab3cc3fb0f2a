"""A data set in tokens, on disk: shards of bounded size that every rank maps into memory, and an index.

| file               | what it holds                                                                         |
|--------------------|---------------------------------------------------------------------------------------|
| index.json         | `pairs`, and `shard_rows`: how many rows each shard has, in order                     |
| lengths.npy        | int32, tokens of each row                                                             |
| answers.npy        | int32, how many of them are the assistant's, but for the first, which nothing predicts |
| 00000-ids.npy …    | int32, the shard's rows end to end                                                    |
| 00000-answer.npy … | bool, whether the token is the assistant's                                            |

With `pairs`, rows 2i and 2i + 1 are the chosen and the rejected answer to one prompt, and lie in one shard.
"""

from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts.base import Contract

INDEX = "index.json"
SHARD_TOKENS = 1 << 24
"""80 MiB. Only rows that come together in one call may make a shard larger."""

Ids = NDArray[np.int32]
Flags = NDArray[np.bool_]


class Index(Contract):
    """What the files say of themselves."""

    layout: Literal[1] = 1
    pairs: bool
    shard_rows: tuple[int, ...]


class TokenFile:
    """The rows' tokens, mapped from the shards in `folder`."""

    def __init__(self, folder: Path) -> None:
        index = Index.model_validate_json((folder / INDEX).read_bytes())
        self.pairs = index.pairs
        self.lengths: NDArray[np.int64] = np.load(folder / "lengths.npy").astype(np.int64)
        """Tokens of each row."""
        self.answers: NDArray[np.int64] = np.load(folder / "answers.npy").astype(np.int64)
        """Of those, how many are learnt."""
        ends = np.cumsum(self.lengths)
        self._starts = ends - self.lengths
        self._first_rows = np.array([0, *accumulate(index.shard_rows)][:-1])
        # Plain arrays over the mapped files: slicing a memmap costs ten times as much.
        self._shards = [
            tuple(np.asarray(np.load(folder / f"{shard:05d}-{name}.npy", mmap_mode="r")) for name in ("ids", "answer"))
            for shard in range(len(index.shard_rows))
        ]

    def row(self, index: int) -> tuple[Ids, Flags]:
        """Ids and "is the assistant's" of one row."""
        shard = int(np.searchsorted(self._first_rows, index, side="right")) - 1
        start = self._starts[index] - self._starts[self._first_rows[shard]]
        span = slice(start, start + self.lengths[index])
        ids, answer = self._shards[shard]
        return ids[span], answer[span]

    def rows(self, indexes: NDArray[np.int64]) -> tuple[Ids, Flags]:
        """Those of several rows, end to end."""
        found = [self.row(int(index)) for index in indexes]
        return np.concatenate([ids for ids, _ in found]), np.concatenate([answer for _, answer in found])


class TokenWriter:
    """Writes a data set in tokens into `folder`. Rows that are added together stay together in a shard."""

    def __init__(self, folder: Path, *, pairs: bool = False, shard_tokens: int = SHARD_TOKENS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._pairs, self._shard_tokens = folder, pairs, shard_tokens
        self._shard_rows: list[int] = []
        self._ids: list[Ids] = []
        self._flags: list[Flags] = []
        self._rows = self._tokens = 0
        self._lengths: list[NDArray[np.int32]] = []
        self._answers: list[NDArray[np.int32]] = []

    def add(self, ids: Ids, answer: Flags, lengths: NDArray[np.int32]) -> None:
        """Rows end to end, with the length of each."""
        if self._rows and self._tokens + len(ids) > self._shard_tokens:
            self._close_shard()
        ends = np.cumsum(lengths)
        learnt = answer.copy()
        learnt[ends - lengths] = False
        before = np.concatenate([[0], np.cumsum(learnt)])
        self._lengths.append(lengths.astype(np.int32))
        self._answers.append((before[ends] - before[ends - lengths]).astype(np.int32))
        self._ids.append(ids)
        self._flags.append(answer)
        self._rows, self._tokens = self._rows + len(lengths), self._tokens + len(ids)

    def close(self) -> tuple[int, int, int]:
        """Writes what is left, and the index.

        Returns:
            Rows, tokens, and how many of those are learnt.
        """
        if self._rows:
            self._close_shard()
        none = [np.zeros(0, dtype=np.int32)]
        lengths, answers = np.concatenate(self._lengths or none), np.concatenate(self._answers or none)
        np.save(self._folder / "lengths.npy", lengths)
        np.save(self._folder / "answers.npy", answers)
        index = Index(pairs=self._pairs, shard_rows=tuple(self._shard_rows))
        (self._folder / INDEX).write_text(index.model_dump_json() + "\n", encoding="utf-8")
        return len(lengths), int(lengths.sum(dtype=np.int64)), int(answers.sum(dtype=np.int64))

    def _close_shard(self) -> None:
        name = f"{len(self._shard_rows):05d}"
        np.save(self._folder / f"{name}-ids.npy", np.concatenate(self._ids).astype(np.int32))
        np.save(self._folder / f"{name}-answer.npy", np.concatenate(self._flags).astype(np.bool_))
        self._shard_rows.append(self._rows)
        self._ids, self._flags = [], []
        self._rows = self._tokens = 0
