"""Workloads and hardware for tests of planning."""

from typing import Any

from pipeline.contracts.finetune import Finetune
from pipeline.planning.hardware import Figure, Hardware
from pipeline.planning.shapes import ModelShape
from pipeline.planning.workload import Workload


def shape(**changes: Any) -> ModelShape:
    """Four layers of 64 values, four heads of 16, two key-value heads, 1000 words."""
    sizes = {
        "kind": "llama", "hidden_size": 64, "intermediate_size": 96, "num_layers": 4, "num_heads": 4,
        "num_kv_heads": 2, "head_size": 16, "vocab_size": 1000, "tied": False,
    }  # fmt: skip
    return ModelShape(**{**sizes, **changes})


def work(model: ModelShape | None = None, *, tokens: int = 32, accelerated: bool = True, **settings: Any) -> Workload:
    """One rank and a row at a time, in bf16, unless `settings` say otherwise."""
    fields = {"nodes": 1, "batch_size": 1, "precision": "bf16", "max_seq_len": tokens, **settings}
    return Workload(
        shape=model or shape(),
        settings=Finetune.model_validate(fields),
        sequence_tokens=tokens,
        accelerated=accelerated,
    )


def hardware(*, memory_gb: float = 80, nodes: int = 1, ranks_per_node: int = 8, **changes: Any) -> Hardware:
    """Accelerators of 100 TFLOP/s and 1000 GB/s, with 800 Gbit/s inside a node and 80 between nodes."""

    def figure(value: float, unit: str) -> Figure:
        return Figure(value=value, unit=unit, source="given")

    fields: dict[str, Any] = {
        "accelerated": True, "nodes": nodes, "ranks_per_node": ranks_per_node, "memory": figure(memory_gb, "GB"),
        "host_memory": figure(4000, "GB"), "tflops": figure(100, "TFLOP/s"), "memory_speed": figure(1000, "GB/s"),
        "within": figure(800, "Gbit/s"), "between": figure(80, "Gbit/s"),
    }  # fmt: skip
    return Hardware(**{**fields, **changes})
