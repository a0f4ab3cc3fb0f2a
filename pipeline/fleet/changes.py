"""What a change of the fleet's state means for the audit log: worked out from the state before and after. Pure."""

from typing import Any

from pipeline.audit.entries import NOBODY_SAID, Event, rollout_actor
from pipeline.fleet.state import ModelFleet, Rollout, Served

ENDS = {
    "promoted": "promoted",
    "failed": "failed",
    "rolled back": "rolled-back",
    "superseded": "superseded",
    "unchanged": "unchanged",
}
"""A rollout's outcome to the action that the log calls it by."""


def events(before: ModelFleet, after: ModelFleet) -> tuple[Event, ...]:
    """In the order in which they are told.

    `planned`, `ready`, `moved` (traffic), then how it ended, then `retired`.
    """
    found: list[Event] = []
    for rollout in after.history:
        known = before.rollout(rollout.generation)
        if known != rollout:
            found += _of_rollout(known, rollout, after)
    if before.weights != after.weights:
        found.insert(_place(found, after.generation), _moved(before, after))
    return tuple(found)


def _place(found: list[Event], generation: int) -> int:
    """Traffic moves after a rollout is planned and before it ends."""
    ends = (at for at, event in enumerate(found) if event.generation == generation and event.action in ENDS.values())
    return next(ends, len(found))


def _of_rollout(known: Rollout | None, rollout: Rollout, after: ModelFleet) -> list[Event]:
    found = []
    new_phases = set(rollout.phases) - set(known.phases if known else ())
    if known is None and "rollback" not in new_phases:
        found.append(
            _event(
                after,
                rollout,
                "planned",
                actor=rollout.by or NOBODY_SAID,
                reason=f"from {rollout.previous or 'nothing'} to {rollout.version}",
                request_id=rollout.request_id,
            )
        )
    if "start_canary" in new_phases and rollout.outcome == "running":
        found.append(_event(after, rollout, "ready", **_deployed(after, after.canary)))
    if rollout.outcome in ENDS and rollout.outcome != (known.outcome if known else "running"):
        actor = rollout.by if "rollback" in new_phases and rollout.by else rollout_actor(rollout.generation)
        served = _deployed(after, after.serving)
        end = ENDS[rollout.outcome]
        found.append(_event(after, rollout, end, actor=actor, reason=rollout.reason, serving=_version(after), **served))
    if "retire" in new_phases:
        found.append(_event(after, rollout, "retired", deployments=[kept.generation for kept in after.deployments]))
    return found


def _moved(before: ModelFleet, after: ModelFleet) -> Event:
    """`from` and `to` give per cent of the traffic by version and deployment."""
    rollout = after.rollout(after.generation)
    return Event(
        action="moved",
        actor=(rollout.by if rollout and rollout.phases == ("rollback",) else "") or rollout_actor(after.generation),
        model=after.name,
        version=rollout.version if rollout else _version(after),
        generation=after.generation,
        reason="traffic",
        details={"from": _shares(before, before.weights), "to": _shares(after, after.weights)},
        source=after.name,
    )


def _shares(model: ModelFleet, weights: dict[int, int]) -> dict[str, int]:
    return {
        f"version {deployment.version if (deployment := model.deployment(generation)) else '?'} (g{generation})": weight
        for generation, weight in sorted(weights.items())
        if weight
    }


def _event(
    after: ModelFleet, rollout: Rollout, action: str, *, actor: str | None = None, reason: str = "", **details: Any
) -> Event:
    return Event(
        action=action,
        actor=actor or rollout_actor(rollout.generation),
        model=after.name,
        version=rollout.version,
        generation=rollout.generation,
        reason=reason,
        details={**details, "from": rollout.previous, "to": rollout.version},
        source=after.name,
    )


def _version(model: ModelFleet) -> str | None:
    return model.serving.version if model.serving else None


def _deployed(model: ModelFleet, served: Served | None) -> dict[str, Any]:
    """Which bytes serve, and whose replicas they are."""
    deployment = model.deployment(served.deployment) if served else None
    if deployment is None:
        return {}
    return {"deployment": deployment.generation, "bundle_digest": deployment.bundle_digest}
