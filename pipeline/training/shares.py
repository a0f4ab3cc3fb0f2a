"""Which of a step's sequences each group of ranks takes: equally many, or in proportion to the ranks' speeds.

The loss is a sum over the tokens of a whole step, so shares of any size give the same loss and the same gradient.
"""

import heapq
from dataclasses import dataclass
from functools import lru_cache

from pipeline.contracts.finetune import Finetune
from pipeline.training.batches import Schedule, Sequence


@lru_cache(maxsize=8)
def deal(count: int, speeds: tuple[float, ...]) -> tuple[tuple[int, ...], ...]:
    """Deals `count` equal sequences, in order, each to the part that would be done with it the soonest.

    Equal speeds give each of n parts every n-th sequence.

    Args:
        speeds: of each part, above 0.

    Returns:
        The indexes of each part's sequences; none for a part that is too slow for even one.
    """
    taken: list[list[int]] = [[] for _ in speeds]
    done = [(1 / speed, part) for part, speed in enumerate(speeds)]
    heapq.heapify(done)
    for index in range(count):
        _, part = done[0]
        taken[part].append(index)
        heapq.heapreplace(done, ((len(taken[part]) + 1) / speeds[part], part))
    return tuple(map(tuple, taken))


@dataclass(frozen=True)
class Shares:
    """The micro-batches of each data-parallel rank."""

    schedule: Schedule
    settings: Finetune
    data_ranks: int
    speeds: tuple[float, ...] | None = None
    """Of each data-parallel rank, in FLOP/s; None where all take equally many sequences."""

    def of(self, step: int, data_rank: int) -> list[list[Sequence]]:
        """The micro-batches of `data_rank` in optimizer step `step`, counted from 1. One may be empty."""
        accumulation = self.settings.gradient_accumulation
        parts = [micro * self.data_ranks + data_rank for micro in range(accumulation)]
        if self.speeds is None:
            return [self.schedule.share(step - 1, part, self.data_ranks * accumulation) for part in parts]
        sequences = self.schedule.steps[step - 1]
        dealt = deal(len(sequences), self.speeds * accumulation)
        return [[sequences[index] for index in dealt[part]] for part in parts]

    @property
    def figures(self) -> dict[str, float]:
        """Where speeds were measured: `data_rank_0_gflops` and `data_rank_0_sequences` (of a step), and so on."""
        found: dict[str, float] = {}
        for rank, speed in enumerate(self.speeds or ()):
            found[f"data_rank_{rank}_gflops"] = float(f"{speed / 1e9:.4g}")
            found[f"data_rank_{rank}_sequences"] = sum(map(len, self.of(1, rank)))
        return found

    def __str__(self) -> str:
        told, count = self.figures, len(self.schedule.steps[0])
        return "; ".join(
            f"data rank {rank}: {told[f'data_rank_{rank}_gflops']:g} GFLOP/s,"
            f" {told[f'data_rank_{rank}_sequences']:g} of {count} sequences a step"
            for rank in range(len(self.speeds or ()))
        )
