"""What one rank of a training holds and works on, from the model's shape and the recipe's settings."""

from dataclasses import dataclass, replace
from functools import cached_property

from pipeline.contracts.finetune import Finetune, Parallelism
from pipeline.errors import SpecError
from pipeline.planning.shapes import ModelShape

BYTES_PER_VALUE = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The layers that a rank has: all of them, or one stage of a pipeline's."""

    index: int
    num_layers: int
    embeds: bool
    """It turns tokens into vectors."""
    answers: bool
    """It turns vectors into logits and the loss."""
    in_flight: int
    """Micro-batches whose activations it keeps at once."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """Parameters on one rank, before ZeRO shares them out."""

    decayed: int
    """Trained, in the optimizer's first group."""
    undecayed: int
    """Trained, in its second."""
    frozen: int
    sizes: tuple[tuple[int, int], ...]
    """How many trained parameters there are of each size."""

    @property
    def trained(self) -> int:
        return self.decayed + self.undecayed

    @property
    def largest_group(self) -> int:
        """The optimizer works on a group at a time."""
        return max(self.decayed, self.undecayed)

    @property
    def largest(self) -> int:
        """The largest single parameter that is trained."""
        return max(size for _, size in self.sizes)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One training: `settings` with a concrete `parallelism`."""

    shape: ModelShape
    settings: Finetune
    sequence_tokens: int
    """Tokens of a sequence, padding included."""
    accelerated: bool
    """The ranks compute on accelerators, not on their machine's cores."""
    sequences: int | None = None
    """Of a rank's largest micro-batch, where it is known; None: an equal share of the batch."""
    counted_share: float = 1.0
    """Of the tokens, those that have a weight in the loss: logits are computed for no others. At most all."""
    teacher: ModelShape | None = None
    saves: bool = True
    """It writes checkpoints."""
    resumes: bool = True
    """It may go on from one."""

    def spread(self, parallelism: Parallelism) -> "Workload":
        """The same training, spread otherwise."""
        return replace(self, settings=self.settings.model_copy(update={"parallelism": parallelism}))

    def on_fewest_nodes(self) -> "Workload":
        """The same training when as many nodes have gone as the recipe allows: a rank's share is larger then."""
        settings = self.settings
        if settings.min_nodes is None:
            return self
        return replace(self, settings=settings.on_nodes(settings.min_nodes))

    @property
    def value_bytes(self) -> int:
        """Of a parameter as the forward pass sees it, and of an activation."""
        return BYTES_PER_VALUE[self.settings.precision]

    @property
    def exchange_bytes(self) -> int:
        """Of a gradient on the wire."""
        return BYTES_PER_VALUE[self.settings.communication.dtype or self.settings.precision]

    @property
    def flat(self) -> bool:
        """ZeRO-1 steps over flat buffers of our own (see `pipeline.training.flat`), not over DeepSpeed's buckets."""
        spread, offload = self.settings.parallelism, self.settings.offload
        elsewhere = offload.optimizer or offload.parameters or self.settings.communication.overlap
        return spread.zero == 1 and spread.model_ranks == 1 and self.settings.precision != "fp16" and not elsewhere

    @property
    def counted_tokens(self) -> float:
        """Of a rank's micro-batch; the stages of a pipeline compute logits for all."""
        share = self.counted_share if self.settings.parallelism.pipeline == 1 else 1.0
        return self.micro_batch_tokens * share

    @property
    def sharing_ranks(self) -> int:
        """Ranks among which ZeRO shares: those that see other rows, or other parts of the same."""
        return self.settings.data_ranks * self.settings.parallelism.sequence

    @property
    def sequences_per_row(self) -> int:
        """A row of preferences holds a chosen and a rejected answer, each with the prompt (Rafailov et al. 2023)."""
        return 2 if self.settings.method == "dpo" else 1

    @property
    def micro_batch_sequences(self) -> int:
        """That a rank works on at a time, or its part of them."""
        settings = self.settings
        if self.sequences is not None:
            return self.sequences
        rows = max(1, settings.batch_size // (settings.data_ranks * settings.gradient_accumulation))
        return rows * self.sequences_per_row

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens that a rank works on at a time: with sequence parallelism, its part of them."""
        tokens = self.micro_batch_sequences * self.sequence_tokens
        return -(-tokens // self.settings.parallelism.sequence)

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimizer step, over all ranks."""
        return self.settings.batch_size * self.sequences_per_row * self.sequence_tokens

    @cached_property
    def adapted(self) -> dict[str, tuple[int, int]]:
        """The linear maps of a layer that get an adapter, with their inputs and outputs.

        Raises:
            SpecError: the recipe names a layer that the model does not have.
        """
        if self.settings.method != "lora":
            return {}
        linears = self.shape.linears
        targets = self.settings.lora.targets if self.settings.lora else "all-linear"
        if targets == "all-linear":
            return linears
        names = [target.rpartition(".")[2] for target in targets]
        unknown = [name for name in names if name not in linears]
        if unknown:
            raise SpecError(
                f"finetune.lora.targets names {', '.join(unknown)}; a {self.shape.kind} has the linear layers"
                f" {', '.join(linears)}"
            )
        return {name: linears[name] for name in names}

    @property
    def adapter_rank(self) -> int:
        """Of each adapter's two matrices (Hu et al. 2021)."""
        return (self.settings.lora.rank if self.settings.lora else 16) if self.settings.method == "lora" else 0

    @property
    def layer_adapter(self) -> int:
        """Parameters of one layer's adapters: rank × (inputs + outputs) each (Hu et al. 2021, section 4.1)."""
        return self.adapter_rank * sum(inputs + outputs for inputs, outputs in self.adapted.values())

    @property
    def trained_parameters(self) -> int:
        """Of the whole model."""
        if self.settings.method == "lora":
            return self.layer_adapter * self.shape.num_layers
        return self.shape.parameters

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Of the pipeline, in order; one without."""
        count, micro_batches = self.settings.parallelism.pipeline, self.settings.gradient_accumulation
        shape = self.shape
        weights = [shape.embedding, *[shape.layer] * shape.num_layers, shape.hidden_size, shape.embedding]
        bounds = partition(weights, count)
        return tuple(
            Stage(
                index=index,
                num_layers=max(0, min(end, shape.num_layers + 1) - max(start, 1)),
                embeds=start == 0,
                answers=end == len(weights),
                in_flight=min(micro_batches, count - index),
            )
            for index, (start, end) in enumerate(bounds)
        )

    def held(self, stage: Stage) -> Held:
        """Parameters on a rank of `stage`. A tied embedding is on the first stage and on the last."""
        shape, tensor, layers = self.shape, self.settings.parallelism.tensor, stage.num_layers
        embedding = shape.embedding if stage.embeds or (stage.answers and shape.tied) else 0
        head = shape.head if stage.answers else 0
        maps = [inputs * outputs // tensor for inputs, outputs in shape.linears.values()]
        rest = (shape.layer_sliced - shape.layer_linear) // tensor + shape.layer_whole
        matrices = layers * sum(maps) + head
        vectors = layers * rest + (shape.hidden_size if stage.answers else 0) + embedding
        if self.settings.method == "lora":
            sides = [self.adapter_rank * side for sizes in self.adapted.values() for side in sizes]
            return Held(
                decayed=layers * self.layer_adapter,
                undecayed=0,
                frozen=matrices + vectors,
                sizes=tuple((layers, side) for side in sides),
            )
        sizes = ((1, embedding), (1, head), (1, vectors - embedding), *((layers, size) for size in maps))
        return Held(decayed=matrices, undecayed=vectors, frozen=0, sizes=sizes)


def partition(weights: list[int], parts: int) -> list[tuple[int, int]]:
    """Cuts a list into consecutive parts whose heaviest is as light as it can be, as DeepSpeed's `parameters` method
    does.

    Returns:
        Each part's start and end.
    """
    low, high = max(weights), sum(weights)
    while low < high:
        middle = (low + high) // 2
        if len(_filled(weights, middle)) <= parts:
            high = middle
        else:
            low = middle + 1
    bounds = _filled(weights, low)
    while len(bounds) < parts:  # a part that can be halved is
        widest = max(range(len(bounds)), key=lambda index: bounds[index][1] - bounds[index][0])
        start, end = bounds[widest]
        bounds[widest : widest + 1] = [(start, (start + end) // 2), ((start + end) // 2, end)]
    return bounds


def _filled(weights: list[int], limit: int) -> list[tuple[int, int]]:
    """Consecutive parts, each filled up to `limit`."""
    bounds, start, load = [], 0, 0
    for index, weight in enumerate(weights):
        if load + weight > limit and index > start:
            bounds.append((start, index))
            start, load = index, 0
        load += weight
    return [*bounds, (start, len(weights))]
