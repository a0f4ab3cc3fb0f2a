"""A rank's place among the others: which rows it works on, and with whom."""

from dataclasses import dataclass

from pipeline.contracts.finetune import Parallelism


@dataclass(frozen=True)
class Place:
    """Coordinates of `rank`, laid out as DeepSpeed lays them out.

    Ranks that share rows are neighbours with tensor and sequence parallelism; the stages of a pipeline are
    `data_ranks` apart.
    """

    rank: int
    world_size: int
    parallelism: Parallelism

    @property
    def data_ranks(self) -> int:
        """Groups of ranks that work on different rows."""
        return self.world_size // self.parallelism.model_ranks

    @property
    def data_rank(self) -> int:
        if self.parallelism.pipeline > 1:
            return self.rank % self.data_ranks
        return self.rank // self.parallelism.model_ranks

    @property
    def stage(self) -> int:
        """Of the pipeline."""
        return self.rank // self.data_ranks if self.parallelism.pipeline > 1 else 0

    @property
    def slice(self) -> int:
        """Which part of every layer it holds."""
        return self.rank % self.parallelism.tensor

    @property
    def part(self) -> int:
        """Which part of every sequence it holds."""
        return self.rank % self.parallelism.sequence

    @property
    def counts_its_loss(self) -> bool:
        """The slices of a layer all see the same loss, which counts once."""
        return self.slice == 0
