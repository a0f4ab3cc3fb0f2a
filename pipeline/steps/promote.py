"""promote: decides whether a registered version becomes the champion, and if so moves the alias.

Reads the registration, the predictions of the version and of the present champion, and the registry. Its result is
the decision; the version's tags say who decided, when and why.
"""

from pipeline import artifacts
from pipeline.contracts.base import Contract
from pipeline.contracts.specs import PromoteResult, PromoteSpec, RegisterResult
from pipeline.errors import GateRefused, IntegrityError
from pipeline.evaluation.compare import Comparison
from pipeline.job import Job
from pipeline.registry import promotion
from pipeline.registry.connection import required_tracking_uri
from pipeline.registry.models import CHAMPION, RegisteredVersion, Registry


class Checked(Contract):
    """What the gates and the comparison found; they raise where they refuse."""

    champion: str | None
    comparison: Comparison | None
    reason: str


def run(spec: PromoteSpec, job: Job) -> PromoteResult:
    """Promotes the registered version, or says why it waits.

    Raises:
        GateRefused: a gate, or the comparison with the champion, says no.
        TransientError: MLflow does not answer, or someone else promoted meanwhile.
    """
    registry = Registry(required_tracking_uri(job), job.settings.home_path)
    version = _registered(spec, registry)
    if registry.alias(version.name, CHAMPION) == version.version:
        return _already_champion(registry, version, request_id=spec.request_id)
    try:
        checked = _check(spec, job, registry=registry, version=version)
    except GateRefused as refusal:
        registry.tag(version.name, version.version, promotion.REFUSED_TAG, str(refusal))
        raise
    held_back = _held_back(spec, version, checked.champion)
    if held_back:
        return _result(version, checked, promoted=False, reason=f"{held_back}; {checked.reason}")
    promoted_by = spec.approved_by or "policy auto"
    tags = {promotion.PROMOTED_BY_TAG: promoted_by, promotion.REQUEST_TAG: spec.request_id}
    if checked.comparison:
        tags[promotion.COMPARISON_TAG] = checked.reason
    promotion.move_champion(registry, version, expected=checked.champion, tags=tags, reason=checked.reason)
    job.say(f"{version.name} version {version.version} is the champion now (before: {checked.champion or 'none'})")
    return _result(version, checked, promoted=True, reason=f"{promoted_by}; {checked.reason}")


def _registered(spec: PromoteSpec, registry: Registry) -> RegisteredVersion:
    """The version that `spec.registration` made, as the registry knows it."""
    registration = artifacts.read_manifest(spec.registration)
    result = RegisterResult.model_validate(registration.result)
    version = registry.get(result.name, result.version)
    if version.registration.digest != spec.registration.digest:
        raise IntegrityError(
            f"{result.name} version {result.version} was registered by {version.registration.uri}, not by"
            f" {spec.registration.uri}; run the release again"
        )
    return version


def _check(spec: PromoteSpec, job: Job, *, registry: Registry, version: RegisteredVersion) -> Checked:
    """The gates, then the champion of this moment."""
    reason = promotion.check_gates(spec.gates, promotion.evaluation_of(version), spec.metric)
    job.say(f"gates passed: {reason}")
    number = registry.alias(version.name, CHAMPION)
    if number is None:
        return Checked(champion=None, comparison=None, reason=f"{reason}; there was no champion to compare with")
    champion = promotion.readable_champion(registry, version, number)
    comparison = promotion.compare(
        version, champion, metric=spec.metric, confidence=spec.confidence, cache_path=job.settings.cache_path
    )
    compared = promotion.check_margin(comparison, margin=spec.gates.champion_margin, champion=number)
    job.say(f"champion matched: {compared}")
    return Checked(champion=number, comparison=comparison, reason=f"{reason}; {compared}")


def _held_back(spec: PromoteSpec, version: RegisteredVersion, champion: str | None) -> str | None:
    """Why a version that passed every gate is still left to a person; None if it is not."""
    if spec.approved_by is not None:
        return None
    if spec.policy == "manual":
        return "waits for approval"
    if champion is not None and int(version.version) < int(champion):
        return f"the champion, version {champion}, is newer; promote by hand to go back"
    if version.tags.get(promotion.ROLLOUT_TAG) == promotion.ROLLOUT_FAILED:
        return f"version {version.version} failed its rollout before; promote by hand to try it again"
    return None


def _already_champion(registry: Registry, version: RegisteredVersion, *, request_id: str) -> PromoteResult:
    """Nothing to do; but a repeat after a crash finds its own earlier move, and what was champion before that."""
    before: str | None = version.version
    if version.tags.get(promotion.REQUEST_TAG) == request_id:
        promotion.finish_move(registry, version)
        before = version.tags.get(promotion.CHAMPION_BEFORE_TAG) or None
    return PromoteResult(
        name=version.name,
        version=version.version,
        promoted=True,
        reason=f"version {version.version} is the champion already",
        champion_before=before,
        comparison=None,
    )


def _result(version: RegisteredVersion, checked: Checked, *, promoted: bool, reason: str) -> PromoteResult:
    return PromoteResult(
        name=version.name,
        version=version.version,
        promoted=promoted,
        reason=reason,
        champion_before=checked.champion,
        comparison=checked.comparison.estimate if checked.comparison else None,
    )
