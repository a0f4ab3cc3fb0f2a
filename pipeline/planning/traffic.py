"""Bytes that a rank sends in one optimizer step, by kind of parallelism."""

from dataclasses import dataclass

from pipeline.planning.step_memory import bucket_elements
from pipeline.planning.workload import Stage, Workload


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What one kind of parallelism sends from each rank in a step."""

    kind: str
    bytes: float
    ranks: int
    """That exchange with each other."""
    neighbours: bool
    """They are ranks that follow each other, so on one node if there is room; otherwise they are spread over nodes."""
    messages: float
    """Exchanges one after the other, each of which takes the time of a message at least."""
    overlaps: bool = False
    """It goes on while the backward pass computes."""


def all_reduced(size: float, ranks: int) -> float:
    """Bytes that each of `ranks` sends to add up `size` bytes: 2(n - 1)/n of them, which is the least (Patarasuk and
    Yuan 2009, "Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations", section 3)."""
    return 2 * gathered(size, ranks)


def gathered(size: float, ranks: int) -> float:
    """Bytes that each of `ranks` sends so that all have `size` bytes, of which each had its share; the same to scatter
    a sum: (n - 1)/n of them (the two halves of the ring all-reduce)."""
    return size * (ranks - 1) / ranks


def step_traffic(work: Workload, stage: Stage) -> tuple[Traffic, ...]:
    """All that a rank of `stage` sends in a step."""
    kinds = (_sharing(work, stage), _slices(work, stage), _sequences(work, stage), _pipeline(work, stage))
    return tuple(kind for kind in kinds if kind.bytes)


def _sharing(work: Workload, stage: Stage) -> Traffic:
    """Gradients, and with ZeRO parameters.

    Rajbhandari et al. 2020, section 7: an all-reduce moves 2Ψ; stages 1 and 2 scatter sums and gather parameters for as
    much; stage 3 gathers them twice, for 3Ψ. Our own steps of stage 1 do that. DeepSpeed 0.19 adds up whole buckets in
    stages 1 and 2 (`use_multi_rank_bucket_allreduce`), and so moves 3Ψ. From stage 2 on gradients are exchanged after
    each micro-batch.
    """
    settings, held, ranks = work.settings, work.held(stage), work.sharing_ranks
    zero, micro_batches = settings.parallelism.zero, settings.gradient_accumulation
    gradients = work.exchange_bytes * held.trained
    parameters = work.value_bytes * held.trained
    messages = float(-(-held.trained // bucket_elements(work, held)))
    if zero == 3:  # a gather for each layer, forward and backward
        messages = micro_batches * (messages + 2 * stage.num_layers)
        whole = work.value_bytes * (held.trained + held.frozen)
        sent = micro_batches * (gathered(gradients, ranks) + 2 * gathered(whole, ranks))
    elif zero == 2:
        sent = micro_batches * all_reduced(gradients, ranks) + gathered(parameters, ranks)
    elif work.flat:
        messages, sent = 4.0, gathered(gradients, ranks) + gathered(parameters, ranks)
    elif zero == 1:
        sent = all_reduced(gradients, ranks) + gathered(parameters, ranks)
    else:
        sent = all_reduced(gradients, ranks)
    return Traffic(
        kind="data",
        bytes=sent,
        ranks=ranks,
        messages=messages if ranks > 1 else 0,
        neighbours=settings.parallelism.pipeline > 1 or settings.parallelism.tensor == 1,
        overlaps=settings.communication.overlap,
    )


def _hidden_bytes(work: Workload) -> float:
    """Of a micro-batch's hidden states on one rank."""
    return work.value_bytes * work.micro_batch_tokens * work.shape.hidden_size


def _slices(work: Workload, stage: Stage) -> Traffic:
    """Shoeybi et al. 2019, "Megatron-LM", section 3: two all-reduces of hidden states in a layer's forward pass, two in
    its backward pass; two more where the forward pass is repeated."""
    ranks = work.settings.parallelism.tensor
    times = 6 if work.settings.activation_checkpointing else 4
    messages = work.settings.gradient_accumulation * stage.num_layers * times
    sent = messages * all_reduced(_hidden_bytes(work), ranks)
    return Traffic(kind="tensor", bytes=sent, ranks=ranks, messages=messages, neighbours=True)


def _sequences(work: Workload, stage: Stage) -> Traffic:
    """Jacobs et al. 2023, "DeepSpeed Ulysses", section 3.2: queries, keys, values and the result change hands in an
    all-to-all each, forward and backward; a rank keeps 1/n of what it has and sends the rest."""
    shape, ranks = work.shape, work.settings.parallelism.sequence
    width = 2 * shape.query_size + 2 * shape.kv_size
    times = 3 if work.settings.activation_checkpointing else 2
    size = work.value_bytes * work.micro_batch_tokens * width
    passes = work.settings.gradient_accumulation * stage.num_layers * times
    sent = passes * gathered(size, ranks)
    return Traffic(kind="sequence", bytes=sent, ranks=ranks, messages=4 * passes, neighbours=True)


def _pipeline(work: Workload, stage: Stage) -> Traffic:
    """Narayanan et al. 2021, section 3.2: a micro-batch's hidden states to the next stage, their gradient to the one
    before."""
    ranks = work.settings.parallelism.pipeline
    ways = (not stage.answers) + (not stage.embeds)
    messages = work.settings.gradient_accumulation * ways if ranks > 1 else 0
    sent = messages * _hidden_bytes(work)
    return Traffic(kind="pipeline", bytes=sent, ranks=ranks, messages=messages, neighbours=False)
