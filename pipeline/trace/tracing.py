"""Follows one request to its end. What is gone is named in `missing` and does not keep the rest from being shown."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pipeline import artifacts
from pipeline.contracts.base import ArtifactRef
from pipeline.contracts.manifest import Manifest
from pipeline.contracts.specs import RegisterSpec, ValidateSpec
from pipeline.contracts.trace import (
    Quantization,
    RecipeSeen,
    Request,
    RolloutSeen,
    RunSeen,
    Trace,
    ValidationSeen,
    VersionSeen,
)
from pipeline.errors import SlipwayError
from pipeline.registry.connection import connect, is_missing, translated_errors
from pipeline.registry.lineage import Lineage, base_model_name, gather, interval, recipe_digest
from pipeline.registry.models import RegisteredVersion, Registry
from pipeline.stack import mlflow_part
from pipeline.stack.layout import Layout
from pipeline.trace.requests import find_request
from pipeline.trace.rollouts import entries_of, find_moment, find_rollout

T = TypeVar("T")
REPORT = "report.html"


def trace(layout: Layout, request_id: str, tracking_uri: str | None = None) -> Trace:
    """Everything behind the answer to one request.

    Args:
        request_id: the answer's header `x-request-id`.
        tracking_uri: of MLflow; None: the stack's.

    Raises:
        SpecError: the gateway's access logs hold no such request.
    """
    request = find_request(layout, request_id)
    if request.model is None or request.version is None or request.deployment is None:
        why = f"no replica answered (status {request.status}, {request.details or 'no details'}): nothing is behind it"
        return Trace(request=request, missing=(why,))
    return _Tracing(layout, request, tracking_uri or mlflow_part.tracking_uri(layout)).follow()


@dataclass
class _Tracing:
    """One request that a replica answered."""

    layout: Layout
    request: Request
    tracking_uri: str
    missing: list[str] = field(default_factory=list)

    def follow(self) -> Trace:
        name, generation = str(self.request.model), self.request.deployment
        entries = entries_of(self.layout, self.request)
        rollout = find_rollout(self.layout, self.request, entries)
        if rollout is None:
            self.missing.append(
                f"rollout {generation} of {name}: it began before the audit log, and the state is newer"
            )
        registered = self._try("the version", self._registered)
        self._compare_bytes(rollout, registered)
        lineage = self._try("the lineage", lambda: _lineage(registered)) if registered else None
        found: dict[str, Any] = _of_lineage(lineage) if lineage else {}
        return Trace(
            request=self.request,
            rollout=rollout,
            moment=find_moment(entries, self.request.at),
            version=self._version(registered) if registered else None,
            runs=self._runs(registered, lineage) if registered and lineage else (),
            missing=tuple(self.missing),
            **found,
        )

    def _try(self, what: str, find: Callable[[], T]) -> T | None:
        try:
            return find()
        except SlipwayError as error:
            self.missing.append(f"{what}: {error}")
            return None

    def _registered(self) -> RegisteredVersion:
        registry = Registry(self.tracking_uri, self.layout.home_path)
        return registry.get(str(self.request.model), str(self.request.version))

    def _compare_bytes(self, rollout: RolloutSeen | None, registered: RegisteredVersion | None) -> None:
        """A registry that was put back from a backup may have given the same number to other bytes."""
        served = rollout.bundle_digest if rollout else None
        if registered and served and served != registered.bundle_digest:
            self.missing.append(
                f"the bytes that answered: the replica loaded the bundle {served}, but version {registered.version} is"
                f" {registered.bundle_digest} in MLflow now; what follows is that one's"
            )

    def _version(self, registered: RegisteredVersion) -> VersionSeen:
        return VersionSeen(
            name=registered.name,
            version=registered.version,
            created_at=registered.created_at,
            url=f"{self._mlflow_page}/#/models/{registered.name}/versions/{registered.version}",
            bundle_uri=f"{registered.bundle.artifact.uri}#{registered.bundle.path}",
            bundle_digest=registered.bundle_digest,
            registration_uri=registered.registration.uri,
        )

    @property
    def _mlflow_page(self) -> str:
        """Where people open MLflow."""
        stack = self.layout.stack_path
        return self.layout.ports().public_url("mlflow") if stack.exists() else self.tracking_uri

    def _runs(self, registered: RegisteredVersion, lineage: Lineage) -> tuple[RunSeen, ...]:
        registration = artifacts.read_manifest(registered.registration)
        steps = (
            (lineage.spec.dataset, lineage.dataset),
            (lineage.spec.finetuned, lineage.finetuned),
            (lineage.spec.evaluation, lineage.evaluation),
            (registered.registration, registration),
        )
        return tuple(self._run(ref, manifest) for ref, manifest in steps)

    def _run(self, ref: ArtifactRef, manifest: Manifest) -> RunSeen:
        run_id = manifest.figures.get("mlflow_run_id")
        url = self._try(f"the run of {manifest.step}", lambda: self._run_url(run_id)) if run_id else None
        return RunSeen(
            step=manifest.step,
            artifact_uri=ref.uri,
            digest=manifest.digest,
            started_at=manifest.started_at,
            duration_s=manifest.duration_s,
            code_version=manifest.code_version,
            run_id=run_id,
            url=url,
        )

    def _run_url(self, run_id: str) -> str | None:
        """MLflow's page of a run is below its experiment's; None for a run that MLflow does not have any more."""
        from mlflow.exceptions import MlflowException

        with translated_errors(self.tracking_uri):
            try:
                experiment_id = connect(self.tracking_uri).get_run(run_id).info.experiment_id
            except MlflowException as error:
                if is_missing(error):
                    self.missing.append(f"run {run_id} in MLflow: it was deleted")
                    return None
                raise
        return f"{self._mlflow_page}/#/experiments/{experiment_id}/runs/{run_id}"


def _lineage(registered: RegisteredVersion) -> Lineage:
    spec = RegisterSpec.model_validate(artifacts.read_manifest(registered.registration).spec)
    return gather(spec, registered.bundle_digest)


def _of_lineage(lineage: Lineage) -> dict[str, Any]:
    return {
        "recipe": _recipe(lineage),
        "quantization": _quantization(lineage),
        "validation": _validation(lineage),
    }


def _recipe(lineage: Lineage) -> RecipeSeen:
    recipe = lineage.spec.recipe
    return RecipeSeen(
        name=recipe.name,
        digest=recipe_digest(recipe),
        base_model=base_model_name(recipe.base_model),
        method=recipe.finetune.method,
        recipe=recipe.model_dump(mode="json"),
    )


def _quantization(lineage: Lineage) -> Quantization:
    verdict, chosen = lineage.verdict, lineage.chosen
    return Quantization(
        scheme=verdict.scheme,
        reason=verdict.reason,
        recovery=interval(chosen.recovery) if chosen else "1.0000 (unquantized)",
        size_bytes=verdict.size_bytes,
        tried=tuple(f"{trial.scheme}: {trial.reason}" for trial in verdict.trials),
        artifact_uri=lineage.spec.evaluation.uri,
    )


def _validation(lineage: Lineage) -> ValidationSeen:
    spec, manifest = ValidateSpec.model_validate(lineage.dataset.spec), lineage.dataset
    uri = lineage.spec.dataset.uri
    has_report = any(entry.path == REPORT for entry in manifest.files)
    return ValidationSeen(
        rules=lineage.data.rules,
        train_rows=lineage.data.train_rows,
        eval_rows=lineage.data.eval_rows,
        report_uri=f"{uri}/{manifest.root}/{REPORT}" if has_report else None,
        artifact_uri=uri,
        artifact_digest=manifest.digest,
        train_uri=spec.train.uri,
        train_digest=spec.train.digest,
        eval_uri=spec.eval.uri,
        eval_digest=spec.eval.digest,
    )
