"""The recipe's `finetune` section: what is trained, from which rows, on how many ranks, and how the model is spread."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.contracts.base import Contract

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]
Degree = Annotated[int, Field(ge=1, le=1024)]
Method = Literal["full", "lora", "distill", "dpo"]


class Parallelism(Contract):
    """How the model is spread over the ranks. What is left of them after `tensor` × `pipeline` × `sequence` is data
    parallelism."""

    outside_progress_key: ClassVar[frozenset[str]] = frozenset({"zero", "sequence"})
    auto: bool = False
    """The planner chooses; a recipe says `parallelism: auto`. `slipway plan RECIPE` shows the choice."""
    zero: Literal[0, 1, 2, 3] = 1
    """What data-parallel ranks share instead of each holding all: 1 the optimizer's state, 2 gradients too, 3
    parameters too (Rajbhandari et al. 2020, "ZeRO")."""
    tensor: Degree = 1
    """Ranks that hold a slice of every layer each (Shoeybi et al. 2019, "Megatron-LM")."""
    pipeline: Degree = 1
    """Ranks that hold some of the layers each (Huang et al. 2019, "GPipe")."""
    sequence: Degree = 1
    """Ranks that hold a part of every sequence each (Jacobs et al. 2023, "DeepSpeed Ulysses")."""

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "auto":
            kinds = ", ".join(name for name in cls.model_fields if name != "auto")
            raise ValueError(
                f"there is no parallelism {value!r}: say `parallelism: auto`, or give a number to any of {kinds}, as in"
                " `parallelism: {tensor: 2}`"
            )
        return {"auto": True} if value == "auto" else value

    @model_validator(mode="after")
    def _one_chooses(self) -> Self:
        if self.auto and (self.zero, self.model_ranks) != (1, 1):
            raise ValueError("`auto` chooses zero, tensor, pipeline and sequence: leave those out, or leave `auto` out")
        return self

    @property
    def model_ranks(self) -> int:
        """Ranks that work on the same rows."""
        return self.tensor * self.pipeline * self.sequence


class Lora(Contract):
    """`method: lora` trains two thin matrices beside each chosen layer, and nothing else (Hu et al. 2021)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The matrices' product counts alpha / rank times."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """The layers' names, such as q_proj; or all linear layers but the output's."""
    output: Literal["merged", "adapter"] = "merged"
    """Whether the result is one model, or the base model with the adapter beside it, which the replicas apply."""


class Distill(Contract):
    """`method: distill` makes a model answer as a larger one does (Hinton et al. 2015)."""

    teacher: str
    """A folder, s3://…, a hub id, or a registered model: models:/NAME@ALIAS or models:/NAME/VERSION."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 2.0
    kl_weight: Fraction = 0.5
    """Of the divergence from the teacher; the rest is the rows' own cross-entropy."""


class Dpo(Contract):
    """`method: dpo` trains on pairs of a chosen and a rejected answer (Rafailov et al. 2023)."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """How closely the model is held to what it was."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """The share of pairs that are thought to be the wrong way round."""


class Offload(Contract):
    """What is kept in the machine's memory instead of the accelerator's, with ZeRO."""

    optimizer: bool = False
    parameters: bool = False
    """Needs zero: 3."""


class Communication(Contract):
    """How gradients are exchanged."""

    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """None: the training's own precision."""
    bucket_mb: Annotated[float, Field(gt=0, le=4096)] = 200.0
    """Gradients that are exchanged at a time."""
    overlap: bool = False
    """Exchange them while the backward pass goes on. Needs an accelerator."""


class Finetune(Contract):
    """How to train."""

    outside_key: ClassVar[frozenset[str]] = frozenset(
        {"min_nodes", "checkpoint_every_steps", "keep_checkpoints", "join_timeout_s", "stall_timeout_s"}
    )
    outside_progress_key: ClassVar[frozenset[str]] = frozenset(
        {"nodes", "procs_per_node", "gradient_accumulation", "activation_checkpointing", "communication", "balance"}
    )
    method: Method = "full"
    lora: Lora | None = None
    distill: Distill | None = None
    dpo: Dpo | None = None
    nodes: Annotated[int, Field(ge=1, le=1024)] = 2
    min_nodes: Annotated[int, Field(ge=1, le=1024)] | None = None
    """With fewer than `nodes` the training goes on as long as so many are there. None: it needs all of them."""
    procs_per_node: Annotated[int, Field(ge=1, le=16)] = 1
    parallelism: Parallelism = Parallelism()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    activation_checkpointing: bool = False
    """Compute each layer's activations twice instead of keeping them."""
    offload: Offload = Offload()
    communication: Communication = Communication()
    epochs: Annotated[float, Field(gt=0)] = 3.0
    batch_size: PositiveInt = 32
    """Rows (with `packing`: packed sequences; with method dpo: pairs) per optimizer step, over all ranks."""
    gradient_accumulation: PositiveInt = 1
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    warmup_fraction: Fraction = 0.05
    decay: Literal["linear", "cosine"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    gradient_clipping: Annotated[float, Field(gt=0)] = 1.0
    max_seq_len: Annotated[int, Field(ge=16)] = 256
    batching: Literal["length_grouped", "packing"] = "length_grouped"
    balance: Literal["even", "measured"] = "even"
    """Ranks take equally many sequences of a step; or in proportion to their speed, which is measured at the start of
    the training. For nodes that are not equally fast (docs/adr/0160)."""
    prompt_loss_weight: Fraction = 0.0
    """0 trains on the assistant's tokens only; above it, the prompt's tokens count with this weight, which
    helps a model that starts from nothing to learn the language."""
    checkpoint_every_steps: PositiveInt = 200
    keep_checkpoints: PositiveInt = 2
    join_timeout_s: Annotated[int, Field(ge=5, le=86400)] = 600
    """A node waits so long for the others, which may still be fetching images or data."""
    stall_timeout_s: Annotated[float, Field(ge=5)] = 300.0
    """A training that takes no step for so long is started again from its last checkpoint."""
    seed: int = 0

    @property
    def world_size(self) -> int:
        """Ranks, with all nodes there."""
        return self.nodes * self.procs_per_node

    @property
    def data_ranks(self) -> int:
        """Ranks that work on different rows, with all nodes there."""
        return self.world_size // self.parallelism.model_ranks

    @model_validator(mode="after")
    def _method_has_its_settings(self) -> Self:
        if self.method == "distill" and self.distill is None:
            raise ValueError("method is distill: name the teacher, as in `distill: {teacher: models:/large@champion}`")
        for name in ("lora", "distill", "dpo"):
            if getattr(self, name) is not None and self.method != name:
                raise ValueError(f"`{name}` is given, but method is {self.method}: leave one of the two out")
        return self

    def on_nodes(self, nodes: int) -> Self:
        """The same training while so many nodes are there: the same batches in micro-batches that are no larger,
        unless that would leave a rank without rows."""
        data_ranks = nodes * self.procs_per_node // self.parallelism.model_ranks
        accumulation = -(-self.data_ranks * self.gradient_accumulation // data_ranks)
        accumulation = min(accumulation, self.batch_size // data_ranks)
        return self.model_copy(update={"nodes": nodes, "gradient_accumulation": accumulation})

    @model_validator(mode="after")
    def _nodes_may_be_fewer(self) -> Self:
        if self.min_nodes is None:
            return self
        if self.min_nodes > self.nodes:
            raise ValueError(f"min_nodes ({self.min_nodes}) must not exceed nodes ({self.nodes})")
        for nodes in range(self.min_nodes, self.nodes + 1):
            if not self.parallelism.auto and nodes * self.procs_per_node % self.parallelism.model_ranks:
                raise ValueError(
                    f"min_nodes is {self.min_nodes}, but {nodes} nodes × procs_per_node ({self.procs_per_node}) are not"
                    f" divisible by tensor × pipeline × sequence ({self.parallelism.model_ranks}): raise"
                    " procs_per_node, so that a model fits on any number of nodes, or leave min_nodes out"
                )
        return self

    @model_validator(mode="after")
    def _combination_works(self) -> Self:
        if self.parallelism.auto:
            return self
        for refusal in refusals(self):
            raise ValueError(refusal)
        if self.world_size % self.parallelism.model_ranks:
            spread = self.parallelism
            raise ValueError(
                f"nodes ({self.nodes}) × procs_per_node ({self.procs_per_node}) = {self.world_size} ranks must be"
                f" divisible by tensor ({spread.tensor}) × pipeline ({spread.pipeline}) × sequence"
                f" ({spread.sequence}) = {spread.model_ranks}"
            )
        share = self.data_ranks * self.gradient_accumulation
        if self.batch_size % share:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be divisible by nodes ({self.nodes}) × procs_per_node"
                f" ({self.procs_per_node}) ÷ ranks that share rows ({self.parallelism.model_ranks}) ×"
                f" gradient_accumulation ({self.gradient_accumulation}) = {share}"
            )
        return self

    @model_validator(mode="after")
    def _parts_are_even_with_fewer_nodes(self) -> Self:
        if self.min_nodes is None or self.parallelism.auto or self.parallelism.sequence == 1:
            return self
        for nodes in range(self.min_nodes, self.nodes):
            fewer = self.on_nodes(nodes)
            share = fewer.data_ranks * fewer.gradient_accumulation
            if self.batch_size % share:
                raise ValueError(
                    f"min_nodes is {self.min_nodes} with sequence {self.parallelism.sequence}, whose attention is laid"
                    f" out for micro-batches of one size, but {nodes} nodes would take batch_size ({self.batch_size})"
                    f" in {share} micro-batches: make it divisible by {share}, leave min_nodes out, or use zero 3"
                    " instead of sequence"
                )
        return self


@dataclass(frozen=True)
class Rule:
    """A combination that does not work. The texts may name fields of the parallelism `p` and of the settings `s`."""

    applies: Callable[[Parallelism, Finetune], bool]
    combination: str
    reason: str
    nearest: str


RULES = (
    Rule(
        lambda p, s: p.tensor > 1 and p.pipeline > 1,
        "tensor {p.tensor} with pipeline {p.pipeline}",
        "the layers of a pipeline are not sliced",
        "tensor {p.model_ranks}, or pipeline {p.model_ranks} with zero 1",
    ),
    Rule(
        lambda p, s: p.tensor > 1 and p.sequence > 1,
        "tensor {p.tensor} with sequence {p.sequence}",
        "both would divide the attention heads",
        "sequence {p.model_ranks} with zero 3",
    ),
    Rule(
        lambda p, s: p.pipeline > 1 and p.sequence > 1,
        "pipeline {p.pipeline} with sequence {p.sequence}",
        "a stage would need the whole sequence",
        "sequence {p.model_ranks} with zero 3, or pipeline {p.model_ranks} with zero 1",
    ),
    Rule(
        lambda p, s: p.pipeline > 1 and p.zero == 0,
        "pipeline with zero 0",
        "each stage would clip its gradients by its own norm",
        "pipeline with zero 1",
    ),
    Rule(
        lambda p, s: p.pipeline > 1 and p.zero >= 2,
        "pipeline with zero {p.zero}",
        "the gradients of a stage's micro-batches must stay whole until the last of them",
        "pipeline with zero 1",
    ),
    Rule(
        lambda p, s: p.pipeline > 1 and s.method != "full",
        "pipeline with method {s.method}",
        "the stages of a pipeline pass one model's activations on, and nothing beside them",
        "method full, or zero 3 instead of the pipeline",
    ),
    Rule(
        lambda p, s: p.tensor > 1 and s.method == "lora",
        "tensor with method lora",
        "the adapters' matrices are not sliced with their layers",
        "zero 3 instead of tensor",
    ),
    Rule(
        lambda p, s: p.sequence > 1 and s.method in ("distill", "dpo"),
        "sequence with method {s.method}",
        "its loss compares whole answers or two models, and a rank has parts of both",
        "zero 3 instead of sequence",
    ),
    Rule(
        lambda p, s: p.sequence > 1 and s.batching == "packing",
        "sequence with batching packing",
        "a rank sees a part of a sequence, and cannot keep its rows apart",
        "batching length_grouped",
    ),
    Rule(
        lambda p, s: p.sequence > 1 and s.balance == "measured",
        "sequence with balance measured",
        "its attention is laid out for one number of sequences on every rank",
        "balance even, or zero 3 instead of sequence",
    ),
    Rule(
        lambda p, s: s.method == "dpo" and s.batching == "packing",
        "batching packing with method dpo",
        "each answer needs a likelihood of its own",
        "batching length_grouped",
    ),
    Rule(
        lambda p, s: s.method == "dpo" and s.prompt_loss_weight > 0,
        "prompt_loss_weight {s.prompt_loss_weight} with method dpo",
        "pairs are told apart by their answers alone",
        "prompt_loss_weight 0",
    ),
    Rule(
        lambda p, s: s.offload.optimizer and p.zero == 0,
        "offload.optimizer with zero 0",
        "every rank uses the whole optimizer state at once",
        "zero 1",
    ),
    Rule(
        lambda p, s: s.offload.parameters and p.zero != 3,
        "offload.parameters with zero {p.zero}",
        "every rank uses all its parameters at once",
        "zero 3",
    ),
)
"""What DeepSpeed 0.19 does with each is in docs/adr/0034-kinds-of-parallelism.md."""


def refusals(settings: Finetune) -> list[str]:
    """Why this combination of settings does not work, each with the nearest that does; empty if it works."""
    names = {"p": settings.parallelism, "s": settings}
    return [
        f"{rule.combination} does not work: {rule.reason}; nearest that works: {rule.nearest}".format(**names)
        for rule in RULES
        if rule.applies(settings.parallelism, settings)
    ]
