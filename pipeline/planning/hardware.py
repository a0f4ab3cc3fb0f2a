"""What one rank computes on: given, read from the recipe or the machine, or assumed, and each figure says which."""

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from pipeline.contracts.cluster import Cluster
from pipeline.contracts.finetune import Finetune
from pipeline.contracts.recipe import Recipe, StepResources
from pipeline.errors import SpecError
from pipeline.planning.accelerators import ACCELERATORS, OTHER

GB = 10**9
ACCELERATOR_SHARE = 0.4
"""Of an accelerator's peak that a training reaches: Narayanan et al. 2021, "Efficient Large-Scale Language Model
Training on GPU Clusters Using Megatron-LM", table 1, measure 0.44 to 0.52 on A100s; Dubey et al. 2024, "The Llama 3
Herd of Models", table 4, 0.38 to 0.43 on H100s."""
CORES_SHARE = 0.6
"""Of what a core reaches in products of matrices, as measured (docs/benchmarks.md)."""
CORE_TFLOPS = 0.064
"""Assumed of a core: two units of AVX2 × 8 fp32 values × a multiplication and an addition × 2 GHz."""
CORE_GBYTES_PER_S = 8.0
"""Assumed of the memory that feeds a core."""
LOOPBACK_GBPS = 16.0
"""Assumed between two processes of one machine, through gloo."""
NETWORK_GBPS = 10.0
"""Assumed between two machines."""
MEMINFO = Path("/proc/meminfo")
WORDS = ("nodes", "gpus", "accelerator", "memory_gb", "tflops", "bandwidth_gbps")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number of the hardware, and who says so."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Of each rank; `memory` of the ranks that share it."""

    accelerated: bool
    nodes: int
    ranks_per_node: int
    memory: Figure
    """GB of an accelerator, or of a node for its ranks together."""
    host_memory: Figure
    """GB of a node."""
    tflops: Figure
    """That a training reaches."""
    memory_speed: Figure
    """GB/s of the memory that a rank computes from."""
    within: Figure
    """Gbit/s between two ranks of a node."""
    between: Figure
    """Gbit/s between two ranks of different nodes."""

    @property
    def rank_bytes(self) -> float:
        """Memory of a rank."""
        return self.memory.value * GB / (1 if self.accelerated else self.ranks_per_node)

    @property
    def figures(self) -> dict[str, Figure]:
        named = {
            "memory of an accelerator" if self.accelerated else "memory of a node": self.memory,
            "speed of a rank": self.tflops,
            "memory's speed": self.memory_speed,
            "between nodes": self.between,
        }
        if self.accelerated:
            named["memory of a node"] = self.host_memory
        if self.ranks_per_node > 1:
            named["within a node"] = self.within
        return named


def parse_cluster(text: str, settings: Finetune) -> tuple[Finetune, Cluster]:
    """`nodes=4,gpus=8,memory_gb=80` as the ranks and what they compute on.

    Raises:
        SpecError: a word that is not known, or a value that is no number.
    """
    words: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals or name not in WORDS or name in words:
            raise SpecError(f"--cluster {part.strip()}: expected NAME=VALUE once for each of {', '.join(WORDS)}")
        words[name] = value
    nodes = _whole_number(words.pop("nodes", str(settings.nodes)), "nodes", least=1)
    gpus = _whole_number(words.pop("gpus", "0"), "gpus", least=0)
    if gpus and "accelerator" not in words:
        words["accelerator"] = OTHER
    try:
        cluster = Cluster.model_validate(words)
    except ValidationError as error:
        problem = error.errors()[0]
        raise SpecError(f"--cluster {problem['loc'][0]}={problem['input']}: {problem['msg'].lower()}") from error
    fewest = min(settings.min_nodes, nodes) if settings.min_nodes else None
    ranks = {"nodes": nodes, "procs_per_node": gpus or settings.procs_per_node, "min_nodes": fewest}
    try:
        return Finetune.model_validate({**settings.model_dump(), **ranks}), cluster
    except ValidationError as error:
        raise SpecError(f"--cluster {text}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def _whole_number(text: str, name: str, *, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise SpecError(f"--cluster {name}={text}: expected a whole number from {least} on")
    return int(text)


def of_recipe(recipe: Recipe, cluster: Cluster | None = None, *, cores: int | None = None) -> Hardware:
    """The hardware of a recipe's ranks.

    Args:
        cluster: instead of the recipe's `resources.cluster`.
        cores: of this machine, for the ranks of one node; what the process may run on if left out.

    Raises:
        SpecError: an accelerator that is not known by name, and whose memory is not given.
    """
    settings, resources = recipe.finetune, recipe.resources.finetune
    given = cluster or recipe.resources.cluster or Cluster()
    node = _node_memory(resources, settings.nodes, given, by_hand=cluster is not None)
    if given.accelerator is None:
        return _cores(settings, given, node, resources, cores)
    return _accelerators(settings, given, node)


def measured_cores(settings: Finetune, tflops: float) -> Hardware:
    """This machine's cores, whose speed in products of matrices was measured."""
    none = Figure(value=0.0, unit="GB", source="not asked for")
    local = Figure(value=LOOPBACK_GBPS, unit="Gbit/s", source="assumed of one machine")
    return Hardware(
        accelerated=False,
        nodes=settings.nodes,
        ranks_per_node=settings.procs_per_node,
        memory=none,
        host_memory=none,
        tflops=Figure(value=tflops * CORES_SHARE, unit="TFLOP/s", source=f"{CORES_SHARE} of what was measured"),
        memory_speed=Figure(value=CORE_GBYTES_PER_S, unit="GB/s", source="assumed of a core"),
        within=local,
        between=local,
    )


def _cores(settings: Finetune, given: Cluster, node: Figure, resources: StepResources, cores: int | None) -> Hardware:
    ranks = settings.procs_per_node
    available = resources.cpus or (cores or len(os.sched_getaffinity(0))) / settings.nodes
    per_rank = max(1.0, available / ranks)
    if given.tflops is not None:
        tflops = Figure(value=given.tflops * CORES_SHARE, unit="TFLOP/s", source=f"{CORES_SHARE} of the figure given")
    else:
        whose = "resources.finetune.cpus" if resources.cpus else "this machine's"
        source = (
            f"an estimate: {CORES_SHARE} of {per_rank:.3g} cores ({whose}) at {CORE_TFLOPS * 1000:.0f} GFLOP/s each;"
            " give tflops for a better one"
        )
        tflops = Figure(value=per_rank * CORE_TFLOPS * CORES_SHARE, unit="TFLOP/s", source=source)
    local = Figure(value=LOOPBACK_GBPS, unit="Gbit/s", source="assumed of one machine")
    return Hardware(
        accelerated=False,
        nodes=settings.nodes,
        ranks_per_node=ranks,
        memory=node,
        host_memory=node,
        tflops=tflops,
        memory_speed=Figure(
            value=CORE_GBYTES_PER_S * per_rank, unit="GB/s", source=f"assumed: {CORE_GBYTES_PER_S:g} for each core"
        ),
        within=local,
        between=_network(given) if given.bandwidth_gbps else local,
    )


def _accelerators(settings: Finetune, given: Cluster, node: Figure) -> Hardware:
    known = ACCELERATORS.get(str(given.accelerator))
    if known is None and (given.accelerator != OTHER or given.memory_gb is None):
        raise SpecError(
            f"the cluster's accelerator is {given.accelerator!r} and its memory {given.memory_gb}: give one of"
            f" {', '.join(ACCELERATORS)}; or `{OTHER}` with memory_gb"
        )
    sheet = f"data sheet of {given.accelerator}" if known else "assumed of an A100, since the accelerator is not named"
    known = known or ACCELERATORS["a100-80gb"]
    peak = known.tflops_fp32 if settings.precision == "fp32" else known.tflops
    if given.tflops is not None:
        tflops = Figure(value=given.tflops, unit="TFLOP/s", source="given")
    else:
        source = f"an estimate: {ACCELERATOR_SHARE} of {peak:g}, {sheet}"
        tflops = Figure(value=peak * ACCELERATOR_SHARE, unit="TFLOP/s", source=source)
    if given.memory_gb is not None:
        memory = Figure(value=given.memory_gb, unit="GB", source="given")
    else:
        memory = Figure(value=known.memory_gb, unit="GB", source=sheet)
    return Hardware(
        accelerated=True,
        nodes=settings.nodes,
        ranks_per_node=settings.procs_per_node,
        memory=memory,
        host_memory=node,
        tflops=tflops,
        memory_speed=Figure(value=known.memory_gbytes_per_s, unit="GB/s", source=sheet),
        within=Figure(value=known.link_gbps, unit="Gbit/s", source=sheet),
        between=_network(given),
    )


def _network(given: Cluster) -> Figure:
    if given.bandwidth_gbps is not None:
        return Figure(value=given.bandwidth_gbps, unit="Gbit/s", source="given")
    return Figure(value=NETWORK_GBPS, unit="Gbit/s", source="assumed of a network; give bandwidth_gbps")


def _node_memory(resources: StepResources, nodes: int, given: Cluster, *, by_hand: bool) -> Figure:
    """What the ranks of a node may take of their machine's memory."""
    if given.accelerator is None and given.memory_gb is not None:
        return Figure(value=given.memory_gb, unit="GB", source="given" if by_hand else "resources.cluster.memory_gb")
    if resources.memory_gb is not None:
        return Figure(value=resources.memory_gb, unit="GB", source="resources.finetune.memory_gb")
    machine = machine_memory_bytes() / GB
    shared = "" if nodes == 1 else f", shared by {nodes} nodes"
    return Figure(value=machine / nodes, unit="GB", source=f"this machine's {machine:.3g} GB{shared}")


def machine_memory_bytes() -> int:
    for line in MEMINFO.read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise SpecError(f"{MEMINFO} does not say how much memory this machine has: give resources.finetune.memory_gb")
