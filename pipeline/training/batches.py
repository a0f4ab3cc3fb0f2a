"""Which rows make which optimizer step: fixed by the seed and the rows' lengths alone, whatever the number of ranks.

A schedule is a list of steps, a step a list of sequences, a sequence a list of rows: one row a sequence with
`length_grouped`, several with `packing`, and the two rows of a pair with method dpo, which so stay together. A rank
takes every n-th sequence of a step, so the ranks' loads are alike. Since the whole schedule is known from the start,
resuming at step N is starting to read it at N, with any number of ranks.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts.finetune import Finetune

GROUP_BATCHES = 20
"""Rows are sorted by length within so many batches: little padding, and still much mixing."""

Sequence = tuple[int, ...]
"""Row indexes, in order."""


@dataclass(frozen=True)
class Schedule:
    """`steps[i]` holds the sequences of optimizer step i + 1, `batch_size` of them."""

    steps: list[list[Sequence]]

    def share(self, step: int, part: int, parts: int) -> list[Sequence]:
        """One of `parts` shares of a step (counted from 0), a rank's micro-batch: they differ by one sequence at most,
        and are empty where there are more parts than sequences."""
        return self.steps[step][part::parts]


def make_schedule(lengths: NDArray[np.int64], settings: Finetune) -> Schedule:
    """The whole training's order.

    Args:
        lengths: tokens of each row.
    """
    random = np.random.default_rng(settings.seed)
    if settings.batching == "packing":
        return _packed(lengths, settings, random)
    if settings.method == "dpo":
        pairs = _length_grouped(lengths.reshape(-1, 2).max(axis=1), settings, random)
        return Schedule([[(2 * pair, 2 * pair + 1) for (pair,) in step] for step in pairs.steps])
    return _length_grouped(lengths, settings, random)


def _length_grouped(lengths: NDArray[np.int64], settings: Finetune, random: np.random.Generator) -> Schedule:
    batch = settings.batch_size
    num_steps = max(1, round(settings.epochs * len(lengths) / batch))
    order = _epochs(len(lengths), num_steps * batch, random)
    steps: list[list[Sequence]] = []
    for start in range(0, len(order), GROUP_BATCHES * batch):
        group = order[start : start + GROUP_BATCHES * batch]
        by_length = group[np.argsort(lengths[group], kind="stable")].reshape(-1, batch)
        steps += [[(int(row),) for row in rows] for rows in random.permutation(by_length)]
    return Schedule(steps)


def _packed(lengths: NDArray[np.int64], settings: Finetune, random: np.random.Generator) -> Schedule:
    rows = _epochs(len(lengths), max(1, round(settings.epochs * len(lengths))), random)
    sequences: list[Sequence] = []
    for start in range(0, len(rows), GROUP_BATCHES * settings.batch_size * 8):
        group = rows[start : start + GROUP_BATCHES * settings.batch_size * 8]
        packed = _best_fit(group, lengths, settings.max_seq_len)
        sequences += [packed[index] for index in random.permutation(len(packed))]
    num_steps = max(1, round(len(sequences) / settings.batch_size))
    missing = num_steps * settings.batch_size - len(sequences)
    if missing > 0:
        sequences += [sequences[index % len(sequences)] for index in range(missing)]
    return Schedule(
        [sequences[step * settings.batch_size : (step + 1) * settings.batch_size] for step in range(num_steps)]
    )


def _best_fit(rows: NDArray[np.int64], lengths: NDArray[np.int64], capacity: int) -> list[Sequence]:
    """Best-fit decreasing: the longest rows first, each into the fullest sequence that has room."""
    packed: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, index into packed), rising
    for row in rows[np.argsort(-lengths[rows], kind="stable")]:
        need = int(lengths[row])
        place = bisect_left(room, (need, -1))
        if place < len(room):
            left, index = room.pop(place)
        else:
            left, index = capacity, len(packed)
            packed.append([])
        packed[index].append(int(row))
        insort(room, (left - need, index))
    return [tuple(sequence) for sequence in packed]


def _epochs(num_rows: int, needed: int, random: np.random.Generator) -> NDArray[np.int64]:
    """`needed` row indexes: one permutation of all rows after the other."""
    permutations = [random.permutation(num_rows) for _ in range(-(-needed // num_rows))]
    return np.concatenate(permutations)[:needed].astype(np.int64)
