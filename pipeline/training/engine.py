"""DeepSpeed, set up so that it needs no compiler: torch's own AdamW, and gloo's all-reduce on CPU."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from pipeline.contracts.finetune import Finetune
from pipeline.errors import SpecError
from pipeline.imports import hide
from pipeline.settings import meeting_of_ranks, set_for_libraries
from pipeline.training.place import Place
from pipeline.training.watchdog import Watchdog

COLLECTIVE_TIMEOUT_S = 600.0
BYTES_OF_A_GRADIENT = 4
MAX_LIVE_PARAMETERS = 1_000_000_000
"""Gathered at a time with ZeRO-3."""
INITIAL_SCALE_POWER = 16
"""fp16 losses are multiplied by two to this power at first, less after an overflow (Micikevicius et al. 2018)."""


def join(rank: int, world_size: int, *, stall_timeout_s: float = 300.0) -> None:
    """Meets the other ranks at the address that torchrun put into the environment.

    The store in which they exchange addresses is ours, a new one each time: in the agents' own store a rank would find
    those of ranks that are dead.

    Args:
        stall_timeout_s: how long this may take before a watchdog ends the process: a rank may reach the agents' store,
            and not the other ranks.
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
    # Longer than a watchdog waits, which says more.
    timeout = timedelta(seconds=max(COLLECTIVE_TIMEOUT_S, 2 * stall_timeout_s))
    with Watchdog(stall_timeout_s, rank, "meeting the other ranks"):
        store = torch.distributed.TCPStore(host, port, world_size, is_master=is_host, timeout=timeout)
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, dist_init_required=False)


def engine_settings(settings: Finetune, place: Place, num_parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Args:
        num_parameters: of the model, or of the part of it that this rank has at the start.
    """
    parallelism, offload = settings.parallelism, settings.offload
    # DeepSpeed allocates a whole bucket at each step, however small the model is.
    bucket = min(num_parameters, round(settings.communication.bucket_mb * 1e6 / BYTES_OF_A_GRADIENT))
    zero: dict[str, Any] = {
        "stage": parallelism.zero,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "overlap_comm": settings.communication.overlap,
    }
    if parallelism.zero == 3:
        # What is small is never spread; its default is for models of billions of parameters.
        zero["stage3_param_persistence_threshold"] = min(100_000, num_parameters // 100)
        zero["stage3_prefetch_bucket_size"] = bucket
        zero["stage3_max_live_parameters"] = MAX_LIVE_PARAMETERS
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if offload.optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if offload.parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    config: dict[str, Any] = {
        # `place` knows how many nodes there are now, `settings` how many there may be.
        "train_micro_batch_size_per_gpu": max(
            1, settings.batch_size // place.data_ranks // settings.gradient_accumulation
        ),
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "gradient_clipping": settings.gradient_clipping,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "fp16": {"enabled": settings.precision == "fp16", "initial_scale_power": INITIAL_SCALE_POWER},
        "bf16": {"enabled": settings.precision == "bf16"},
        "steps_per_print": 10**9,
    }
    if parallelism.tensor > 1:
        config["tensor_parallel"] = {"autotp_size": parallelism.tensor, "vocab_parallel_lm_head": False}
    if parallelism.sequence > 1:
        config["sequence_parallel_size"] = parallelism.sequence
    if settings.communication.dtype:
        config["communication_data_type"] = settings.communication.dtype
    return config


def make_engine(model: nn.Module, settings: Finetune, place: Place, *, mpu: Any = None) -> Any:
    """A DeepSpeed engine over `model`, as `settings` say.

    Args:
        mpu: DeepSpeed's own record of the groups of sequence parallelism.

    Raises:
        SpecError: this machine has no instructions for the precision asked for.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if settings.precision == "fp16" and not get_accelerator().is_fp16_supported():
        raise SpecError("finetune.precision is fp16, in which this machine cannot compute fast: use bf16 or fp32")
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay),
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        eps=1e-8,
        fused=True,
    )
    config = engine_settings(settings, place, num_parameters(model))
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, mpu=mpu)
    _keep_norm(engine)
    return engine


def _keep_norm(engine: Any) -> None:
    """In fp32 without ZeRO, DeepSpeed clips by a norm that it forgets; here `get_global_grad_norm` gives it."""
    from deepspeed.runtime.utils import clip_grad_norm_

    def clip() -> None:
        engine._global_grad_norm = float(
            clip_grad_norm_(parameters=engine.module.parameters(), max_norm=engine.gradient_clipping(), mpu=engine.mpu)
        )

    engine.clip_fp32_gradients = clip


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Also of a parameter that ZeRO-3 has spread over the ranks."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def num_parameters(model: nn.Module) -> int:
    return sum(math.prod(whole_shape(parameter)) for parameter in model.parameters())


@contextmanager
def spread_from_the_start(settings: Finetune, place: Place) -> Iterator[None]:
    """Models that transformers makes meanwhile are spread over the ranks as they are loaded, with ZeRO-3: no rank ever
    holds one whole.

    Not where the layers are sliced, too: what has no slices would be spread over the slices' ranks as well, and a
    checkpoint would not tell. The engine spreads such a model when it has sliced it.
    """
    if settings.parallelism.zero != 3 or settings.parallelism.tensor > 1:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    config = HfDeepSpeedConfig(engine_settings(settings, place, MAX_LIVE_PARAMETERS))
    try:
        yield
    finally:
        del config
        unset_hf_deepspeed_config()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """No decay for norms, biases and embeddings: those are scales and look-up tables, not maps."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_map = len(whole_shape(parameter)) >= 2 and id(parameter) not in embeddings
            (decayed if is_map else others).append(parameter)
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
