"""One way to spread a training on some hardware: what it takes, how fast it is, and whether it fits."""

from dataclasses import dataclass

from pipeline.contracts.finetune import Parallelism
from pipeline.planning.hardware import GB, Hardware
from pipeline.planning.memory import CORES_NODE, RankMemory, rank_memory
from pipeline.planning.speed import StepTime, step_time
from pipeline.planning.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Of the rank that needs most, with the fewest nodes that the recipe allows, and of the slowest, with all."""

    work: Workload
    hardware: Hardware
    memory: RankMemory
    time: StepTime

    @property
    def parallelism(self) -> Parallelism:
        return self.work.settings.parallelism

    @property
    def node_bytes(self) -> float:
        """Of a node's own memory, for all its ranks and what runs beside them."""
        rank = self.memory.host if self.hardware.accelerated else self.memory.device
        return rank * self.hardware.ranks_per_node + CORES_NODE

    @property
    def excess(self) -> str:
        """What does not fit, with the figures; empty if all does."""
        hardware = self.hardware
        if hardware.accelerated and self.memory.device > hardware.rank_bytes:
            return (
                f"a rank needs {self.memory.device / GB:.2f} GB of its accelerator at its peak"
                f" ({self.memory.peak.name}), which has {hardware.memory.value:.4g} GB ({hardware.memory.source})"
            )
        if self.node_bytes > hardware.host_memory.value * GB:
            ranks = f"{hardware.ranks_per_node} rank{'s' * (hardware.ranks_per_node > 1)}"
            return (
                f"a node needs {self.node_bytes / GB:.2f} GB for {ranks},"
                f" and may take {hardware.host_memory.value:.4g} GB ({hardware.host_memory.source})"
            )
        return ""

    @property
    def filled(self) -> float:
        """The fullest memory, as a fraction of what there is."""
        node = self.node_bytes / (self.hardware.host_memory.value * GB)
        return max(node, self.memory.device / self.hardware.rank_bytes) if self.hardware.accelerated else node


def forecast(work: Workload, hardware: Hardware) -> Forecast:
    return Forecast(
        work=work, hardware=hardware, memory=rank_memory(work.on_fewest_nodes()), time=step_time(work, hardware)
    )
