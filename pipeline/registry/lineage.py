"""Everything that a registration tells about its version, gathered from the manifests of the steps before it."""

from typing import Any

from pipeline import artifacts
from pipeline.contracts.base import ArtifactRef, Contract, canonical_json, sha256_hex
from pipeline.contracts.manifest import Manifest
from pipeline.contracts.recipe import BaseModelSource, Recipe
from pipeline.contracts.specs import (
    Estimate,
    EvaluateCompressedResult,
    EvaluateCompressedSpec,
    FinetuneResult,
    RegisterSpec,
    Scores,
    Trial,
    ValidateResult,
)


class Lineage(Contract):
    """Where a version comes from."""

    spec: RegisterSpec
    bundle_digest: str
    dataset: Manifest
    finetuned: Manifest
    evaluation: Manifest
    baseline: Manifest
    """Of evaluate."""

    @property
    def data(self) -> ValidateResult:
        return ValidateResult.model_validate(self.dataset.result)

    @property
    def training(self) -> FinetuneResult:
        return FinetuneResult.model_validate(self.finetuned.result)

    @property
    def verdict(self) -> EvaluateCompressedResult:
        return EvaluateCompressedResult.model_validate(self.evaluation.result)

    @property
    def chosen(self) -> Trial | None:
        """The trial of the scheme that was chosen."""
        return next((trial for trial in self.verdict.trials if trial.scheme == self.verdict.scheme), None)


def gather(spec: RegisterSpec, bundle_digest: str) -> Lineage:
    """Reads the manifests behind `spec`.

    Raises:
        IntegrityError: one is missing or was altered.
    """
    evaluation = artifacts.read_manifest(spec.evaluation)
    baseline: ArtifactRef = EvaluateCompressedSpec.model_validate(evaluation.spec).baseline
    return Lineage(
        spec=spec,
        bundle_digest=bundle_digest,
        dataset=artifacts.read_manifest(spec.dataset),
        finetuned=artifacts.read_manifest(spec.finetuned),
        evaluation=evaluation,
        baseline=artifacts.read_manifest(baseline),
    )


def recipe_digest(recipe: Recipe) -> str:
    return sha256_hex(canonical_json(recipe.model_dump(mode="json")))


def base_model_name(source: BaseModelSource) -> str:
    """The base model as a reader knows it."""
    if source.init is not None:
        shape = source.init
        return f"new model, {shape.num_layers} layers of width {shape.hidden_size}, vocabulary {shape.vocab_size}"
    return f"{source.uri}@{source.revision}" if source.revision else str(source.uri)


def interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "undefined"
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def version_tags(lineage: Lineage) -> dict[str, str]:
    """What MLflow shows beside the version."""
    spec, verdict, chosen = lineage.spec, lineage.verdict, lineage.chosen
    metric = spec.recipe.evaluate.primary_metric
    return {
        "slipway.bundle": f"{spec.bundle.artifact.uri}#{spec.bundle.path}",
        "slipway.metric": metric,
        "slipway.score": interval(verdict.scores.primary(metric)),
        "slipway.baseline_score": interval(verdict.baseline.primary(metric)),
        "slipway.recovery": interval(chosen.recovery) if chosen else "1.0000 (unquantized)",
        "slipway.scheme": verdict.scheme,
        "slipway.scheme_reason": verdict.reason,
        "slipway.size_bytes": str(verdict.size_bytes),
        "slipway.base_model": base_model_name(spec.recipe.base_model),
        "slipway.dataset_digest": spec.dataset.digest,
        "slipway.recipe_digest": recipe_digest(spec.recipe),
        "slipway.code_version": lineage.finetuned.code_version,
    }


def run_metrics(lineage: Lineage) -> dict[str, float]:
    """Scores, sizes and measured figures of the release, for the registration's MLflow run."""
    verdict = lineage.verdict
    metrics = {
        **_scores("released", verdict.scores),
        **_scores("baseline", verdict.baseline),
        "released/size_bytes": float(verdict.size_bytes),
        "training/final_train_loss": lineage.training.final_train_loss,
        "training/parameters": float(lineage.training.parameters),
        "training/tokens": float(lineage.training.train_tokens),
    }
    for trial in verdict.trials:
        metrics |= _scores(f"trial_{trial.scheme}", trial.scores)
        if trial.recovery is not None:
            metrics |= _estimate(f"trial_{trial.scheme}/recovery", trial.recovery)
    for manifest in (lineage.baseline, lineage.evaluation):
        metrics |= {f"{manifest.step}/{name}": value for name, value in _numbers(manifest.figures).items()}
        metrics[f"{manifest.step}/duration_s"] = manifest.duration_s
    return metrics


def _scores(prefix: str, scores: Scores) -> dict[str, float]:
    return {
        f"{prefix}/rows": float(scores.rows),
        f"{prefix}/loss": scores.loss,
        **_estimate(f"{prefix}/exact_match", scores.exact_match),
        **_estimate(f"{prefix}/token_f1", scores.token_f1),
    }


def _estimate(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _numbers(figures: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
