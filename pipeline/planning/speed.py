"""Seconds of an optimizer step: arithmetic, the optimizer's passes over memory, exchanges, and waiting."""

from dataclasses import dataclass

from pipeline.planning.hardware import GB, Hardware
from pipeline.planning.shapes import ModelShape
from pipeline.planning.traffic import Traffic, step_traffic
from pipeline.planning.workload import Stage, Workload

TERA, GIGABIT = 1e12, 1e9 / 8
OPTIMIZER_BYTES = 28
"""Read and written for each value by the fused AdamW: parameter, gradient and two moments, and three of them back."""
ACCELERATOR_MESSAGE_S, CORES_MESSAGE_S = 30e-6, 500e-6
"""Assumed of an exchange however small, through NCCL and through gloo."""
BACKWARD_SHARE = 2 / 3
"""Of a step's arithmetic, during which gradients can be exchanged."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step on its slowest rank."""

    compute_s: float
    bubble_s: float
    """A stage waits for the others while the pipeline fills and drains."""
    optimizer_s: float
    exchange_s: float
    """Beyond what goes on beside the arithmetic."""
    traffic: tuple[Traffic, ...]
    tokens: int

    @property
    def total_s(self) -> float:
        return self.compute_s + self.bubble_s + self.optimizer_s + self.exchange_s

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.total_s


def layer_flops(shape: ModelShape, sequence_tokens: int) -> float:
    """Of one token through one layer, forward: 2 for each weight, and 4 for each query value and token looked at.

    Chowdhery et al. 2022, "PaLM", appendix B, count 6N + 12LHQT for forward and backward together, the backward pass
    being twice the forward one; they count causal attention in full, as here.
    """
    return 2.0 * shape.layer_linear + 4.0 * shape.query_size * sequence_tokens


def head_flops(shape: ModelShape) -> float:
    """Of one token through the output layer, forward."""
    return 2.0 * shape.embedding


def token_flops(shape: ModelShape, sequence_tokens: int) -> float:
    """Of one token, forward and backward, all parameters trained: 6N + 12LHQT, N without the embedding's look-up."""
    return 3 * (shape.num_layers * layer_flops(shape, sequence_tokens) + head_flops(shape))


def micro_batch_flops(work: Workload, stage: Stage) -> float:
    """Of a micro-batch on a rank of `stage`, forward and backward."""
    shape, settings = work.shape, work.settings
    layer = layer_flops(shape, work.sequence_tokens) / settings.parallelism.tensor
    # Frozen weights need the gradient of their input and not their own: 4N instead of 6N.
    passes = 2.0 if settings.method == "lora" else 3.0
    per_token = stage.num_layers * layer * (passes + settings.activation_checkpointing)
    per_token += stage.num_layers * 6.0 * work.layer_adapter
    flops = work.micro_batch_tokens * per_token
    if stage.answers:
        flops += work.counted_tokens * passes * head_flops(shape)
    if work.teacher is not None:
        flops += work.micro_batch_tokens * token_flops(work.teacher, work.sequence_tokens) / 3
    return flops


def step_time(work: Workload, hardware: Hardware) -> StepTime:
    """Of the slowest stage. A pipeline of p stages and m micro-batches stands still for (p - 1)/m of the time that it
    computes (Narayanan et al. 2021, section 2.2.1)."""
    micro_batches, stages = work.settings.gradient_accumulation, len(work.stages)
    speed = hardware.tflops.value * TERA
    compute = max(micro_batches * micro_batch_flops(work, stage) / speed for stage in work.stages)
    stage = max(work.stages, key=lambda stage: work.held(stage).trained)
    traffic = step_traffic(work, stage)
    beside = sum(_seconds(part, hardware) for part in traffic if part.overlaps)
    alone = sum(_seconds(part, hardware) for part in traffic if not part.overlaps)
    return StepTime(
        compute_s=compute,
        bubble_s=compute * (stages - 1) / micro_batches,
        optimizer_s=_optimizer_s(work, stage, hardware),
        exchange_s=alone + max(0.0, beside - BACKWARD_SHARE * compute),
        traffic=traffic,
        tokens=work.step_tokens,
    )


def _optimizer_s(work: Workload, stage: Stage, hardware: Hardware) -> float:
    share = work.held(stage).trained / (work.sharing_ranks if work.settings.parallelism.zero else 1)
    return share * OPTIMIZER_BYTES / (hardware.memory_speed.value * GB)


def _seconds(part: Traffic, hardware: Hardware) -> float:
    """Over the slowest link that the exchange needs."""
    on_one_node = hardware.nodes == 1 or (part.neighbours and part.ranks <= hardware.ranks_per_node)
    link = hardware.within if on_one_node else hardware.between
    message_s = ACCELERATOR_MESSAGE_S if hardware.accelerated else CORES_MESSAGE_S
    return part.bytes / (link.value * GIGABIT) + part.messages * message_s
