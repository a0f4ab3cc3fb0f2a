"""Who becomes the champion: the gates, the comparison with the present champion, and the move of the alias.

Challenger and champion are compared on the held-out rows that both answered (same prompt, same reference). Where the
held-out rows have changed, that is their intersection; where too few are shared (see `evaluation.compare`), nothing
can be said, and the decision is left to a person.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pipeline import artifacts, audit
from pipeline.contracts.base import ArtifactRef, Contract
from pipeline.contracts.recipe import Gates
from pipeline.contracts.specs import EvaluateCompressedResult, RegisterSpec
from pipeline.errors import DataError, GateRefused, TransientError
from pipeline.evaluation import predictions
from pipeline.evaluation.compare import Comparison, compare_predictions
from pipeline.registry.lineage import interval
from pipeline.registry.models import CHAMPION, RegisteredVersion, Registry

PROMOTED_BY_TAG = "slipway.promoted_by"
PROMOTED_AT_TAG = "slipway.promoted_at"
"""UTC, ISO 8601"""
CHAMPION_BEFORE_TAG = "slipway.champion_before"
"""The version that was champion until then; empty if there was none."""
REQUEST_TAG = "slipway.promotion_request"
COMPARISON_TAG = "slipway.comparison"
REFUSED_TAG = "slipway.refused"
"""Why the last attempt to promote the version was refused."""

ROLLOUT_TAG = "slipway.rollout"
"""How the version's last rollout ended; the rollout writes it."""
ROLLOUT_FAILED = "failed"


class Promotion(Contract):
    """What a promotion did."""

    name: str
    version: str
    champion_before: str | None
    changed: bool
    """False: the version was the champion already."""


def evaluation_of(registered: RegisteredVersion) -> EvaluateCompressedResult:
    """The scores of a registered version."""
    return EvaluateCompressedResult.model_validate(artifacts.read_manifest(_evaluation(registered)).result)


def check_gates(gates: Gates, verdict: EvaluateCompressedResult, metric: str) -> str:
    """A sentence with the figures that passed.

    Raises:
        GateRefused: a score is not good enough.
    """
    score, loss = verdict.scores.primary(metric), verdict.scores.loss
    if score.value < gates.min_score:
        raise GateRefused(
            f"{metric} is {interval(score)} on {verdict.scores.rows} rows, but gates.min_score is {gates.min_score};"
            " train longer or on better data, or lower the gate in the recipe"
        )
    if gates.max_loss is not None and loss > gates.max_loss:
        raise GateRefused(
            f"the loss is {loss:.4f} nats on {verdict.scores.rows} rows, but gates.max_loss is {gates.max_loss};"
            " train longer or on better data, or raise the gate in the recipe"
        )
    limit = "" if gates.max_loss is None else f" (at most {gates.max_loss})"
    return f"{metric} {interval(score)} (at least {gates.min_score}), loss {loss:.4f}{limit}"


def compare(
    challenger: RegisteredVersion, champion: RegisteredVersion, *, metric: str, confidence: float, cache_path: Path
) -> Comparison:
    """Both versions' predictions, row by row.

    Raises:
        GateRefused: they share too few rows, or the champion's predictions are gone.
    """
    ours, theirs = (_predictions(version, cache_path) for version in (challenger, champion))
    try:
        return compare_predictions(ours, theirs, metric=metric, confidence=confidence)
    except DataError as error:
        raise GateRefused(f"{error}: {_by_hand(challenger)}") from error


def _predictions(version: RegisteredVersion, cache_path: Path) -> Path:
    return artifacts.fetch(_evaluation(version), cache_path) / predictions.FILE


def _evaluation(version: RegisteredVersion) -> ArtifactRef:
    return RegisterSpec.model_validate(artifacts.read_manifest(version.registration).spec).evaluation


def _by_hand(version: RegisteredVersion) -> str:
    return f"slipway promote {version.name} {version.version}"


def check_margin(comparison: Comparison, *, margin: float, champion: str) -> str:
    """A sentence with the figures that passed.

    Raises:
        GateRefused: the challenger may be worse than the champion by more than `margin`.
    """
    figures = f"{comparison.sentence()}, where the champion is version {champion}"
    if comparison.estimate.low < -margin:
        raise GateRefused(
            f"{figures}; the interval's lower end must reach {-margin:+} (gates.champion_margin). The champion stays:"
            " improve the model, evaluate on more rows for a narrower interval, or promote by hand"
        )
    return figures


def move_champion(
    registry: Registry, version: RegisteredVersion, *, expected: str | None, tags: Mapping[str, str], reason: str
) -> None:
    """Points the alias at `version` if it still names `expected`, and records who did it and what was before.

    Args:
        reason: why, for the audit log.

    Raises:
        TransientError: someone else moved the alias meanwhile.
    """
    name, number = version.name, version.version
    actor = tags.get(PROMOTED_BY_TAG, audit.NOBODY_SAID)
    details = {"from": expected, "to": number, "request_id": tags.get(REQUEST_TAG)}
    home_path = registry.home_path
    audit.record(home_path, action="promote", actor=actor, model=name, version=number, reason=reason, details=details)
    # Before the alias moves: an attempt that dies after the move still finds what was champion before.
    registry.tag(name, number, CHAMPION_BEFORE_TAG, expected or "")
    for key, value in tags.items():
        registry.tag(name, number, key, value)
    if not registry.compare_and_set_alias(name, CHAMPION, expected, number):
        problem = (
            f"the champion of {name} was version {expected or 'none'} when version {number} was compared with it, and"
            f" is version {registry.alias(name, CHAMPION) or 'none'} now: someone else promoted meanwhile"
        )
        audit.record(home_path, action="refused", actor=actor, model=name, version=number, reason=problem)
        raise TransientError(f"{problem}; the step is tried again and compares with the new one")
    _record_time(registry, version)
    registry.delete_tag(name, number, REFUSED_TAG)


def finish_move(registry: Registry, version: RegisteredVersion) -> None:
    """What an attempt that died right after moving the alias left undone."""
    if PROMOTED_AT_TAG not in version.tags:
        _record_time(registry, version)


def _record_time(registry: Registry, version: RegisteredVersion) -> None:
    registry.tag(version.name, version.version, PROMOTED_AT_TAG, datetime.now(UTC).isoformat(timespec="seconds"))


def promote_by_hand(
    registry: Registry, *, name: str, version: str, promoted_by: str, reason: str = "by hand"
) -> Promotion:
    """Makes `version` the champion because a person says so: no gate, no comparison.

    Raises:
        SpecError: there is no such version.
        DataError: it cannot be served: it was not registered by Slipway, or its registration is damaged.
        TransientError: someone else moved the alias at the same time.
    """
    registered = registry.get(name, version)
    before = registry.alias(name, CHAMPION)
    if before == version:
        details = {"from": before, "to": version}
        audit.record(
            registry.home_path,
            action="promote",
            actor=promoted_by,
            model=name,
            version=version,
            reason=reason,
            details=details,
        )
        return Promotion(name=name, version=version, champion_before=before, changed=False)
    move_champion(registry, registered, expected=before, tags={PROMOTED_BY_TAG: promoted_by}, reason=reason)
    return Promotion(name=name, version=version, champion_before=before, changed=True)


def previous_champion(registry: Registry, name: str) -> str | None:
    """The version that was champion before the present one; None if there was none, or nobody recorded it."""
    champion = registry.alias(name, CHAMPION)
    if champion is None:
        return None
    return registry.summary(name, champion).tags.get(CHAMPION_BEFORE_TAG) or None


def history(registry: Registry, name: str) -> list[tuple[str, str, str]]:
    """Each version that was ever promoted, latest promotion first: time, version, by whom."""
    promoted = [
        (found.tags[PROMOTED_AT_TAG], found.version, found.tags.get(PROMOTED_BY_TAG, "unknown"))
        for found in registry.versions(name)
        if PROMOTED_AT_TAG in found.tags
    ]
    return sorted(promoted, reverse=True)


def readable_champion(registry: Registry, challenger: RegisteredVersion, number: str) -> RegisteredVersion:
    """The champion, version `number`, with its registration.

    Raises:
        GateRefused: it cannot be compared with, since it was registered elsewhere or its artifacts are gone.
    """
    try:
        return registry.get(challenger.name, number)
    except DataError as error:
        raise GateRefused(
            f"version {number} of {challenger.name} is the champion, but cannot be compared with: {error}. If version"
            f" {challenger.version} shall replace it all the same: {_by_hand(challenger)}"
        ) from error
