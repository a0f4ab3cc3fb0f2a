"""DeepSpeed, set up so that it needs no compiler: torch's own AdamW, and gloo's all-reduce on CPU."""

import math
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from pipeline.contracts.finetune import Finetune
from pipeline.imports import hide
from pipeline.settings import meeting_of_ranks, set_for_libraries

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
MAX_BUCKET_ELEMENTS = 50_000_000
"""Of gradients that the ranks add up in one exchange."""


def join(rank: int, world_size: int) -> None:
    """Meets the other ranks at the address that torchrun put into the environment.

    The rank is ours, not torchrun's: torchrun numbers nodes in the order of their addresses and process ids, so after
    a restart a node could find another node's optimizer state on its disk. The store in which they exchange addresses
    is ours as well, a new one each time: in the agents' own store a rank would find those of ranks that are dead.
    """
    if not torch.cuda.is_available():
        set_for_libraries({"DS_ACCELERATOR": "cpu"})
    hide("mlflow")  # DeepSpeed's autotuner, which nobody asked for, imports it for a second
    import deepspeed
    import deepspeed.ops

    # An all-reduce through shared memory that DeepSpeed would compile now; gloo does the same work without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    host, port, is_host = meeting_of_ranks()
    store = torch.distributed.TCPStore(host, port, world_size, is_master=is_host, timeout=COLLECTIVE_TIMEOUT)
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT
    )
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, dist_init_required=False)


def make_engine(model: nn.Module, settings: Finetune) -> Any:
    """A DeepSpeed engine over `model`, with clipping, accumulation, ZeRO and precision as `settings` say."""
    import deepspeed

    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay), lr=settings.learning_rate, betas=(0.9, 0.95), eps=1e-8
    )
    # DeepSpeed allocates a whole bucket at each step; its default is 2 GB, even for a small model.
    bucket = min(sum(parameter.numel() for parameter in model.parameters()), MAX_BUCKET_ELEMENTS)
    config = {
        "train_micro_batch_size_per_gpu": settings.batch_size // settings.world_size // settings.gradient_accumulation,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "gradient_clipping": settings.gradient_clipping,
        "zero_optimization": {
            "stage": settings.parallelism.zero,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": False,
        },
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": settings.precision == "bf16"},
        "checkpoint": {"use_node_local_storage": True},
        "steps_per_print": 10**9,
    }
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """No decay for norms, biases and embeddings: those are scales and look-up tables, not maps."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (others if parameter.ndim < 2 or id(parameter) in embeddings else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate(step: int, num_steps: int, settings: Finetune) -> float:
    """Of optimizer step `step`, counted from 1: a linear warm-up, then a decay that would reach 0 one step late."""
    warmup = round(settings.warmup_fraction * num_steps)
    if step <= warmup:
        return settings.learning_rate * step / warmup
    progress = (step - 1 - warmup) / max(1, num_steps - warmup)
    if settings.decay == "linear":
        return settings.learning_rate * (1 - progress)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
