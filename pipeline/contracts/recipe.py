"""The recipe: the user's one file that says what to release. See infra/recipes/ for complete ones."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from pipeline.contracts.base import Contract
from pipeline.contracts.cluster import Cluster
from pipeline.contracts.finetune import Finetune, Fraction, PositiveInt
from pipeline.contracts.rollout import Rollout
from pipeline.contracts.search import Search, problems

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Scheme = Literal["w4a16", "w8a8", "none"]
Format = Literal["chat", "preference"]


class GeneratedData(Contract):
    """The demonstration data that the project makes by itself, the same for the same seed."""

    kind: Literal["support-intents", "support-preferences"]
    """Customers' messages and their intents, as chat rows; or as preference rows, with another intent rejected."""
    train_rows: Annotated[int, Field(ge=100, le=1_000_000)] = 6000
    eval_rows: Annotated[int, Field(ge=50, le=100_000)] = 600
    seed: int = 7


class Dataset(Contract):
    """Where the rows are. Either `uri` and `eval_uri`, or `generate`."""

    uri: str | None = None
    """Training rows: a path, file:///… or s3://…, ending in .jsonl or .parquet."""
    eval_uri: str | None = None
    """Held-out rows, never trained on."""
    generate: GeneratedData | None = None
    format: Format = "chat"
    """chat: conversations whose last message is the answer to learn. preference: a prompt, a chosen and a rejected
    answer, for `finetune.method: dpo`. See pipeline/data/chat.py and pipeline/data/preferences.py."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.generate is None and not (self.uri and self.eval_uri):
            raise ValueError("needs both `uri` and `eval_uri`, or `generate`")
        if self.generate is not None and (self.uri or self.eval_uri):
            raise ValueError("`generate` makes both files: leave `uri` and `eval_uri` out")
        return self

    @model_validator(mode="after")
    def _format_is_what_is_made(self) -> Self:
        if self.generate is None:
            return self
        made = "preference" if self.generate.kind == "support-preferences" else "chat"
        if self.format != made:
            raise ValueError(
                f"generate.kind {self.generate.kind} makes {made} rows, but format is {self.format}: set format: {made}"
            )
        return self


class InitModel(Contract):
    """A small new Llama with random weights and a byte-level BPE tokenizer trained on the training rows."""

    vocab_size: Annotated[int, Field(ge=300, le=200_000)] = 2048
    hidden_size: PositiveInt = 128
    intermediate_size: PositiveInt = 384
    num_layers: PositiveInt = 2
    num_heads: PositiveInt = 4
    num_kv_heads: PositiveInt = 2
    max_position_embeddings: Annotated[int, Field(ge=32)] = 256
    tie_word_embeddings: bool = True
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """In training only."""
    lowercase_prompts: bool = False
    """The chat template lower-cases all but the assistant's messages, in training and when served: a small model
    need not learn that "Card" is "card"."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be divisible by num_heads ({self.num_heads})")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be divisible by num_kv_heads ({self.num_kv_heads})")
        head_size = self.hidden_size // self.num_heads
        if head_size not in (32, 48, 64, 80, 96, 128):
            raise ValueError(
                f"hidden_size / num_heads is {head_size}; the serving engine has kernels for 32, 48, 64, 80, 96, 128"
            )
        return self


class BaseModelSource(Contract):
    """What fine-tuning starts from. Either `uri` or `init`."""

    uri: str | None = None
    """A folder (path, file:///…, s3://…) in Hugging Face form, or a hub id such as `org/name`."""
    revision: str | None = None
    """Of a hub id: the commit to pin."""
    init: InitModel | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.uri is None) == (self.init is None):
            raise ValueError("needs exactly one of `uri` and `init`")
        return self


class Validation(Contract):
    """The rules that the data must keep."""

    min_rows: PositiveInt = 100
    """Of the training file; the held-out file needs a tenth of it."""
    max_rows: PositiveInt | None = None
    min_chars: PositiveInt = 1
    max_chars: PositiveInt = 20_000
    """Of one message."""
    max_tokens: PositiveInt | None = None
    """Of one row, all messages together, counted with the base model's tokenizer (with `init`: a byte-level
    estimate)."""
    max_duplicate_fraction: Fraction = 0.05
    max_overlap_fraction: Fraction = 0.0
    """Of held-out rows whose prompt also stands in the training rows."""
    max_conflict_fraction: Fraction = 0.02
    """Of the rows: those that answer a prompt differently than its first row in the file does; of preference rows,
    those that choose what an earlier one rejects, and reject what it chose."""
    labels: tuple[str, ...] | None = None
    """If named, the assistant's content must be one of them."""
    min_distinct_answers: PositiveInt = 2
    """Data with a single answer teaches nothing and makes every score meaningless."""
    suite_uri: str | None = None
    """The user's own Great Expectations suite: a JSON file of `{"expectations": [...]}` over the columns that
    pipeline/data/columns.py lists."""


class Evaluate(Contract):
    """How the model is scored, with the engine that serves it."""

    max_rows: PositiveInt | None = None
    """Of the held-out rows, the first so many; all of them if left out."""
    max_new_tokens: PositiveInt = 32
    primary_metric: Literal["exact_match", "token_f1"] = "exact_match"
    bootstrap_samples: Annotated[int, Field(ge=100, le=100_000)] = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    seed: int = 0


class Compress(Contract):
    """Which quantized forms to try, in order; the first that keeps enough of the score is released."""

    ladder: tuple[Scheme, ...] = ("w4a16", "w8a8", "none")
    min_recovery: Fraction = 0.98
    """Quantized score ÷ baseline score; the lower end of its confidence interval must reach this."""
    calibration_rows: PositiveInt = 256
    seed: int = 0

    @model_validator(mode="after")
    def _ladder_is_sound(self) -> Self:
        if not self.ladder:
            raise ValueError("ladder is empty: name at least one of w4a16, w8a8, none")
        if len(set(self.ladder)) != len(self.ladder):
            raise ValueError(f"ladder {list(self.ladder)} names a scheme twice")
        if "none" in self.ladder[:-1]:
            raise ValueError("`none` always passes, so it can only stand at the end of the ladder")
        return self


class Gates(Contract):
    """What a model must reach before it may become the champion."""

    min_score: Fraction = 0.0
    """Of the primary metric, after compression."""
    max_loss: Annotated[float, Field(gt=0)] | None = None
    champion_margin: Fraction = 0.02
    """The challenger may score at most this much below the champion on the same rows (the lower end of the
    paired interval of the difference must lie above −margin)."""


class Promote(Contract):
    """Who decides that a version becomes the champion."""

    policy: Literal["auto", "manual"] = "auto"


class Deadlines(Contract):
    """Seconds after which a step's job is ended, wherever its worker is."""

    plan_s: PositiveInt = 300
    validate_s: PositiveInt = 1800
    finetune_s: PositiveInt = 21_600
    evaluate_s: PositiveInt = 3600
    compress_s: PositiveInt = 3600
    register_s: PositiveInt = 600
    promote_s: PositiveInt = 600


class StepResources(Contract):
    """What a step's container may use at most; for a step of several nodes, each of them. None: no limit.

    Steps that are processes of the machine are not limited.
    """

    cpus: Annotated[float, Field(gt=0)] | None = None
    memory_gb: Annotated[float, Field(ge=0.01)] | None = None
    shm_gb: Annotated[float, Field(gt=0)] | None = None
    """Of /dev/shm, through which the processes of a training or an inference engine exchange data."""


class Resources(Contract):
    """The limits of the steps' containers."""

    control: StepResources = StepResources(memory_gb=4)
    """Of the steps that neither train nor evaluate: plan, validate, register, promote."""
    finetune: StepResources = StepResources(memory_gb=8, shm_gb=1)
    """Of each node."""
    evaluate: StepResources = StepResources(memory_gb=8, shm_gb=1)
    """Of evaluate and evaluate_compressed."""
    compress: StepResources = StepResources(memory_gb=8, shm_gb=1)
    cluster: Cluster | None = None
    """What fine-tuning's ranks compute on, for `slipway plan` and `parallelism: auto`; None: cores."""


class Recipe(Contract):
    """One release, from the data set to the fleet."""

    outside_key: ClassVar[frozenset[str]] = frozenset({"resources", "search"})

    name: Name
    """The registered model's name in MLflow, and what clients send as `model`."""
    description: str = ""
    schedule: str | None = None
    """A cron expression; with it the recipe gets a DAG of its own that runs by the clock."""
    dataset: Dataset
    base_model: BaseModelSource
    validation: Validation = Validation()
    finetune: Finetune = Finetune()
    evaluate: Evaluate = Evaluate()
    compress: Compress = Compress()
    gates: Gates = Gates()
    promote: Promote = Promote()
    rollout: Rollout = Rollout()
    deadlines: Deadlines = Deadlines()
    resources: Resources = Resources()
    search: Search | None = None
    """For `slipway search`: a release takes no notice of it."""

    @model_validator(mode="after")
    def _search_varies_what_there_is(self) -> Self:
        if self.search and (found := list(problems(self.search, type(self)))):
            raise ValueError("; ".join(f"search.{problem}" for problem in found))
        return self

    @model_validator(mode="after")
    def _kernels_accept(self) -> Self:
        """The serving engine's 4-bit kernel on CPU takes layers whose sizes are multiples of 32, and only those."""
        init = self.base_model.init
        if init is None or "w4a16" not in self.compress.ladder:
            return self
        for name in ("hidden_size", "intermediate_size"):
            size = getattr(init, name)
            if size % 32:
                raise ValueError(
                    f"base_model.init.{name} ({size}) must be a multiple of 32 when compress.ladder names w4a16,"
                    f" e.g. {-(-size // 32) * 32}"
                )
        return self

    @model_validator(mode="after")
    def _method_has_its_rows(self) -> Self:
        method, rows = self.finetune.method, self.dataset.format
        if method == "dpo" and rows != "preference":
            raise ValueError(
                f"finetune.method is dpo, which learns from pairs of answers, but dataset.format is {rows}: give rows"
                " with a chosen and a rejected answer, and set dataset.format to preference"
            )
        if method != "dpo" and rows == "preference":
            raise ValueError(
                f"dataset.format is preference, but finetune.method is {method}, which would learn nothing from"
                " rejected answers: set finetune.method to dpo, or give chat rows with dataset.format chat"
            )
        return self

    @model_validator(mode="after")
    def _adapter_is_served_whole(self) -> Self:
        """Calibration and the quantized kernels know the base model alone."""
        lora = self.finetune.lora
        if lora is not None and lora.output == "adapter" and self.compress.ladder != ("none",):
            raise ValueError(
                f"compress.ladder {list(self.compress.ladder)} quantizes a whole model; with finetune.lora.output"
                " adapter it must be [none], or let the output be merged"
            )
        return self

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        init = self.base_model.init
        if init and self.finetune.max_seq_len > init.max_position_embeddings:
            raise ValueError(
                f"finetune.max_seq_len ({self.finetune.max_seq_len}) must not exceed"
                f" base_model.init.max_position_embeddings ({init.max_position_embeddings})"
            )
        if init and self.rollout.max_model_len > init.max_position_embeddings:
            raise ValueError(
                f"rollout.max_model_len ({self.rollout.max_model_len}) must not exceed"
                f" base_model.init.max_position_embeddings ({init.max_position_embeddings})"
            )
        if self.evaluate.max_new_tokens >= self.rollout.max_model_len:
            raise ValueError(
                f"evaluate.max_new_tokens ({self.evaluate.max_new_tokens}) must be below"
                f" rollout.max_model_len ({self.rollout.max_model_len})"
            )
        return self
