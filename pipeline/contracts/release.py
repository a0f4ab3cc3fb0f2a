"""From a planned recipe and the artifacts so far to the next step's spec: the release's wiring, in one place.

Used by the release DAG; each function is pure. Where a plan has pinned a file or folder, its place in the recipe is
left out of the spec: a key depends on what is read, not on where it lies.
"""

from pipeline.contracts.base import ArtifactRef, ModelRef
from pipeline.contracts.specs import (
    CompressSpec,
    EvaluateCompressedResult,
    EvaluateCompressedSpec,
    EvaluateSpec,
    FinetuneSpec,
    PlanResult,
    PromoteSpec,
    RegisterSpec,
    ValidateSpec,
)

PINNED = "pinned"
"""Stands in a spec for the name of something that the spec holds by its digest."""


def validate_spec(plan: PlanResult) -> ValidateSpec:
    recipe = plan.recipe
    return ValidateSpec(
        train=plan.train,
        eval=plan.eval,
        format=recipe.dataset.format,
        rules=recipe.validation.model_copy(update={"suite_uri": None}),
        suite=plan.suite,
        base_model=plan.base_model,
    )


def finetune_spec(plan: PlanResult, dataset: ArtifactRef) -> FinetuneSpec:
    source = plan.recipe.base_model
    if plan.base_model is not None:
        source = source.model_copy(update={"uri": f"sha256:{plan.base_model.digest}"})
    settings = plan.recipe.finetune
    if settings.distill is not None:
        settings = settings.model_copy(update={"distill": settings.distill.model_copy(update={"teacher": PINNED})})
    return FinetuneSpec(
        dataset=dataset,
        base_model=source,
        base_model_folder=plan.base_model,
        teacher=plan.teacher,
        settings=settings,
    )


def evaluate_spec(plan: PlanResult, dataset: ArtifactRef, finetuned: ArtifactRef) -> EvaluateSpec:
    return EvaluateSpec(
        model=ModelRef(artifact=finetuned),
        dataset=dataset,
        settings=plan.recipe.evaluate,
        max_model_len=plan.recipe.rollout.max_model_len,
    )


def compress_spec(plan: PlanResult, dataset: ArtifactRef, finetuned: ArtifactRef) -> CompressSpec:
    return CompressSpec(
        model=ModelRef(artifact=finetuned),
        dataset=dataset,
        settings=plan.recipe.compress,
        max_seq_len=plan.recipe.finetune.max_seq_len,
    )


def evaluate_compressed_spec(
    plan: PlanResult, *, dataset: ArtifactRef, finetuned: ArtifactRef, evaluated: ArtifactRef, compressed: ArtifactRef
) -> EvaluateCompressedSpec:
    recipe = plan.recipe
    return EvaluateCompressedSpec(
        baseline=evaluated,
        model=ModelRef(artifact=finetuned),
        compressed=compressed,
        dataset=dataset,
        settings=recipe.evaluate,
        ladder=recipe.compress.ladder,
        min_recovery=recipe.compress.min_recovery,
        max_model_len=recipe.rollout.max_model_len,
    )


def bundle_ref(evaluation: EvaluateCompressedResult, *, finetuned: ArtifactRef, compressed: ArtifactRef) -> ModelRef:
    """The model folder that evaluate_compressed chose."""
    return ModelRef(artifact=finetuned if evaluation.scheme == "none" else compressed, path=evaluation.path)


def register_spec(
    plan: PlanResult, *, dataset: ArtifactRef, finetuned: ArtifactRef, bundle: ModelRef, evaluation: ArtifactRef
) -> RegisterSpec:
    return RegisterSpec(
        name=plan.recipe.name,
        recipe=plan.recipe,
        dataset=dataset,
        finetuned=finetuned,
        bundle=bundle,
        evaluation=evaluation,
    )


def promote_spec(
    plan: PlanResult, registration: ArtifactRef, *, request_id: str, approved_by: str | None = None
) -> PromoteSpec:
    recipe = plan.recipe
    return PromoteSpec(
        registration=registration,
        gates=recipe.gates,
        metric=recipe.evaluate.primary_metric,
        confidence=recipe.evaluate.confidence,
        policy=recipe.promote.policy,
        approved_by=approved_by,
        request_id=request_id,
    )
