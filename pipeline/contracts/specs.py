"""A Spec and a Result for each step, and the table of steps."""

from typing import Any, Literal

from pydantic import Field

from pipeline.contracts import recipe as recipes
from pipeline.contracts.base import ArtifactRef, Contract, Digest, FileRef, FolderRef, ModelRef, Result, Spec
from pipeline.contracts.finetune import Finetune
from pipeline.contracts.study import StudyResult, StudySpec, SuggestResult, SuggestSpec


class Estimate(Contract):
    """A figure with its bootstrap confidence interval."""

    value: float
    low: float
    high: float


# --- plan: checks the recipe and pins every input by digest ------------------------------------------------------


class PlanSpec(Spec):
    recipe: dict[str, Any]
    """As the user gave it, overrides applied; checked by the step."""
    request_id: str
    """Of the DAG run: a plan looks at files that may have changed, so it is never reused by another run."""


class HubModel(Contract):
    """A model of the Hugging Face hub at one commit."""

    name: str
    revision: str


PinnedModel = ModelRef | FolderRef | HubModel
"""A model that cannot change: in an artifact, in a folder elsewhere, or on the hub."""


class PlanResult(Result):
    recipe: recipes.Recipe
    """Every default filled in."""
    recipe_digest: Digest
    train: FileRef
    eval: FileRef
    base_model: FolderRef | None
    """None for `init` and for hub ids, whose `recipe.base_model.revision` is then the pinned commit."""
    suite: FileRef | None = None
    teacher: PinnedModel | None = None
    """With `finetune.method: distill`."""


class GenerateSpec(Spec):
    """Of a generated data set: no step of its own, but an artifact (`generate/{key}`) that plan makes and reuses.

    Files: train.jsonl, eval.jsonl.
    """

    settings: recipes.GeneratedData


# --- validate ----------------------------------------------------------------------------------------------------


class ValidateSpec(Spec):
    train: FileRef
    eval: FileRef
    format: recipes.Format = "chat"
    rules: recipes.Validation
    suite: FileRef | None = None
    base_model: FolderRef | None = None
    """Whose tokenizer counts tokens."""


class ValidateResult(Result):
    """Files: train.jsonl, eval.jsonl (one row a line, as validated: `messages`, and `rejected` in preference rows),
    report.html, report.json."""

    train_rows: int
    eval_rows: int
    labels: tuple[str, ...]
    """Distinct answers in the training rows, sorted, when there are at most 1,000."""
    rules: int
    """How many expectations were checked, all of them met."""


# --- finetune ----------------------------------------------------------------------------------------------------


class FinetuneSpec(Spec):
    dataset: ArtifactRef
    """Of validate."""
    base_model: recipes.BaseModelSource
    base_model_folder: FolderRef | None = None
    teacher: PinnedModel | None = None
    settings: Finetune


class TokensSpec(Spec):
    """Of training rows in a model's tokens: no step of its own, but an artifact (`tokens/{key}`) that finetune makes
    and reuses.

    Files: see pipeline/training/tokens.py.
    """

    rows: FileRef
    """train.jsonl of validate."""
    tokenizer: Digest
    """Over the tokenizer and its chat template."""
    max_seq_len: int
    pairs: bool
    """Preference rows: each becomes two."""


class TokensResult(Result):
    rows: int
    """With pairs, two for each row of the file."""
    tokens: int
    shortened_prompts: int
    """Rows whose prompt lost its beginning to fit max_seq_len."""
    shortened_answers: int
    """Rows whose answer alone is longer than max_seq_len, and lost its end."""


class FinetuneResult(Result):
    """Files: a Hugging Face folder (config.json, model.safetensors, tokenizer.json, chat_template.jinja, …),
    loss.png and metrics.jsonl under training/; with an adapter that was not merged, that in peft's form under
    adapter/, and the base model's weights."""

    steps: int
    parameters: int
    final_train_loss: float
    train_tokens: int
    """Real (non-padding) tokens seen in training."""


# --- evaluate ----------------------------------------------------------------------------------------------------


class Scores(Contract):
    rows: int
    loss: float
    """Mean negative log-likelihood of the reference answers' tokens, in nats."""
    exact_match: Estimate
    token_f1: Estimate
    too_long_rows: int = 0
    """Rows whose prompt and reference do not fit `max_model_len`: scored 0, and left out of the loss."""

    def primary(self, metric: str) -> Estimate:
        estimate: Estimate = getattr(self, metric)
        return estimate


class EvaluateSpec(Spec):
    model: ModelRef
    dataset: ArtifactRef
    """Of validate; its eval.jsonl is scored."""
    settings: recipes.Evaluate
    max_model_len: int


class EvaluateResult(Result):
    """Files: predictions.jsonl, a row a line: row, prompt, reference, prediction, exact_match, token_f1, loss
    (see pipeline/evaluation/predictions.py)."""

    scores: Scores


# --- compress and evaluate_compressed ------------------------------------------------------------------------------


class CompressSpec(Spec):
    model: ModelRef
    dataset: ArtifactRef
    """Of validate; calibration rows come from its train.jsonl."""
    settings: recipes.Compress
    max_seq_len: int


class Rung(Contract):
    scheme: recipes.Scheme
    path: str
    """Of the model folder inside the artifact."""
    size_bytes: int
    """Of its weights."""


class CompressResult(Result):
    """Files: a folder in compressed-tensors form for each scheme of the ladder but `none`."""

    rungs: tuple[Rung, ...]
    baseline_size_bytes: int


class EvaluateCompressedSpec(Spec):
    baseline: ArtifactRef
    """Of evaluate."""
    model: ModelRef
    """The unquantized model: the last rung."""
    compressed: ArtifactRef
    dataset: ArtifactRef
    settings: recipes.Evaluate
    ladder: tuple[recipes.Scheme, ...]
    min_recovery: float
    max_model_len: int


class Trial(Contract):
    """One rung that was tried."""

    scheme: recipes.Scheme
    scores: Scores
    recovery: Estimate | None
    """Quantized ÷ baseline score on the same rows; None when the baseline scores 0."""
    passed: bool
    reason: str
    """A sentence with the figures."""


class EvaluateCompressedResult(Result):
    """Files: predictions.jsonl of the chosen model."""

    scheme: recipes.Scheme
    """Of the bundle that is to be registered; `none` is the unquantized model itself."""
    path: str
    """Of the bundle's folder inside the compress artifact, or (`none`) inside the finetune artifact."""
    size_bytes: int
    """Of its weights."""
    scores: Scores
    baseline: Scores
    trials: tuple[Trial, ...]
    reason: str


# --- register and promote --------------------------------------------------------------------------------------------


class RegisterSpec(Spec):
    name: str
    recipe: recipes.Recipe
    dataset: ArtifactRef
    finetuned: ArtifactRef
    bundle: ModelRef
    evaluation: ArtifactRef
    """Of evaluate_compressed."""


class RegisterResult(Result):
    """Files: model_card.md."""

    name: str
    version: str
    bundle_digest: Digest
    """Over the model folder's files: what a replica must load."""


class PromoteSpec(Spec):
    registration: ArtifactRef
    gates: recipes.Gates
    metric: Literal["exact_match", "token_f1"]
    confidence: float = 0.95
    policy: Literal["auto", "manual"]
    approved_by: str | None = None
    """With `manual`: who approved it."""
    request_id: str
    """Promotion looks at the registry, which changes, so it is never reused by another run."""


class PromoteResult(Result):
    name: str
    version: str
    promoted: bool
    reason: str
    champion_before: str | None
    comparison: Estimate | None
    """Challenger − champion on the same rows, primary metric."""


# --- rollout -----------------------------------------------------------------------------------------------------


class RolloutSpec(Spec):
    name: str
    generation: int = 0
    """Numbers the rollouts of one model; a phase that its generation has done already does nothing.
    For `plan` 0: it allocates the number, the same one for the same `request_id`. For `roll_back` 0: the plan failed,
    and the rollout is the one that it has numbered for `request_id`, if it came so far."""
    phase: Literal["plan", "start_canary", "shift", "promote", "roll_back", "retire"]
    version: str | None = None
    """The version that `plan` named; None for `plan`."""
    reason: str = ""
    """For roll_back."""
    request_id: str


class RolloutResult(Result):
    name: str
    generation: int
    phase: str
    outcome: Literal["done", "nothing_to_do", "healthy", "unhealthy", "superseded"]
    reason: str
    version: str | None = None
    """The version that the rollout brings."""
    previous: str | None = None
    steps: tuple[int, ...] = ()
    observed: dict[str, float | int | str] = Field(default_factory=dict)


# --- the table -----------------------------------------------------------------------------------------------------


class StepInfo(Contract):
    spec: type[Spec]
    result: type[Result]
    environment: Literal["control", "model", "serve"]
    version: int = 1
    """Raise it when the step's code changes what it produces for the same spec."""


STEPS: dict[str, StepInfo] = {
    "plan": StepInfo(spec=PlanSpec, result=PlanResult, environment="control"),
    "validate": StepInfo(spec=ValidateSpec, result=ValidateResult, environment="control"),
    "finetune": StepInfo(spec=FinetuneSpec, result=FinetuneResult, environment="model"),
    "evaluate": StepInfo(spec=EvaluateSpec, result=EvaluateResult, environment="serve"),
    "compress": StepInfo(spec=CompressSpec, result=CompressResult, environment="model"),
    "evaluate_compressed": StepInfo(spec=EvaluateCompressedSpec, result=EvaluateCompressedResult, environment="serve"),
    "register": StepInfo(spec=RegisterSpec, result=RegisterResult, environment="control", version=2),
    "promote": StepInfo(spec=PromoteSpec, result=PromoteResult, environment="control"),
    "rollout": StepInfo(spec=RolloutSpec, result=RolloutResult, environment="control"),
    "suggest": StepInfo(spec=SuggestSpec, result=SuggestResult, environment="control"),
    "study": StepInfo(spec=StudySpec, result=StudyResult, environment="control"),
}
