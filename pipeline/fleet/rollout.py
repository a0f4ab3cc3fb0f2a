"""The rollout's phases: plan, start_canary, shift (its own module), promote, roll_back, retire.

Each is harmless to repeat, can be killed anywhere and run again, and ends as `superseded` when a newer rollout of the
model has begun. Reads the registry's `champion`; writes the fleet's state, the gateway's configuration, the aliases
`serving` and (rolling back) `champion`, and the version's tags.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from pipeline import audit
from pipeline.contracts.specs import RolloutResult, RolloutSpec
from pipeline.errors import DataError, IntegrityError, ReplicaFailed, SpecError
from pipeline.fleet import starting
from pipeline.fleet.parts import (
    Fleet,
    Superseded,
    ended,
    required_rollout,
    running_rollout,
    superseding,
    unused,
    with_phase,
)
from pipeline.fleet.shifting import shift
from pipeline.fleet.state import Deployment, ModelFleet, Rollout, Served
from pipeline.registry.anchors import drop_anchor
from pipeline.registry.models import CHAMPION, SERVING, RegisteredVersion

OUTCOME_TAG = "slipway.rollout"
REASON_TAG = "slipway.rollout_reason"
RETIRE_POLL_S = 0.5
MAX_SETTLE_S = 120.0
"""`plan` waits so long for replicas that are up but not healthy yet, as after a restart of the stack."""


def run_phase(spec: RolloutSpec, fleet: Fleet) -> RolloutResult:
    """Runs one phase.

    Raises:
        DataError: (plan) the champion is no version that can be served; the alias has been put back.
        TransientError: the registry, the store or the gateway does not answer now.
    """
    if spec.phase == "plan":
        return plan(spec, fleet)
    phase: Callable[[RolloutSpec, Fleet], RolloutResult] = {
        "start_canary": start_canary,
        "shift": shift,
        "promote": promote,
        "roll_back": roll_back,
        "retire": retire,
    }[spec.phase]
    try:
        return phase(spec, fleet)
    except Superseded:
        newest = fleet.files.get(spec.name).generation
        return _result(spec, "superseded", f"rollout {newest} has begun", version=spec.version)


# --- plan --------------------------------------------------------------------------------------------------------


def plan(spec: RolloutSpec, fleet: Fleet) -> RolloutResult:
    """Compares what should be served with what is, and numbers the rollout that the difference needs."""
    model = fleet.files.get(spec.name)
    known = model.requested(spec.request_id)
    if known:
        return _planned(spec, fleet, known, "planned before")
    champion = fleet.registry.alias(spec.name, CHAMPION)
    if champion is None:
        return _result(spec, "nothing_to_do", f"{spec.name} has no champion")
    registered = _servable(spec, fleet, champion, model)
    wait_s = min(registered.recipe.rollout.ready_timeout_s, MAX_SETTLE_S)
    running = running_rollout(model)
    # Somebody moved the alias back in mid-rollout: the version that is on trial must go.
    on_trial = model.canary is not None or (running is not None and running.version != champion)
    is_settled = not on_trial and not unused(model) and not _serves_short(model)
    if is_settled and _is_served(fleet, model, registered, wait_s):
        if fleet.registry.alias(spec.name, SERVING) != champion:
            fleet.registry.set_alias(spec.name, SERVING, champion)
        return _result(spec, "nothing_to_do", f"version {champion} is served already", version=champion, model=model)
    rollout = _allocate(spec, fleet, champion)
    return _planned(spec, fleet, rollout, f"from {rollout.previous or 'nothing'} to {champion}")


def _servable(spec: RolloutSpec, fleet: Fleet, champion: str, model: ModelFleet) -> RegisteredVersion:
    """The champion; one that can never be served is not left as the champion."""
    try:
        return fleet.registry.get(spec.name, champion)
    except DataError as error:
        back = model.serving.version if model.serving else None
        _put_back(spec, fleet, champion, back, str(error))
        fleet.registry.tag(spec.name, champion, OUTCOME_TAG, "failed")
        fleet.registry.tag(spec.name, champion, REASON_TAG, str(error)[:4000])
        raise


def _put_back(spec: RolloutSpec, fleet: Fleet, failed: str, served: str | None, reason: str) -> bool:
    """The champion is `served` again, unless somebody has moved it meanwhile. True if it is."""
    if fleet.registry.alias(spec.name, CHAMPION) != failed:
        return False
    record = partial(
        audit.record,
        fleet.layout,
        actor=audit.rollout_actor(spec.generation) if spec.generation else "rollout",
        model=spec.name,
        version=served,
        generation=spec.generation or None,
    )
    record(action="put-back", reason=reason, details={"from": failed, "to": served})
    moved = fleet.registry.compare_and_set_alias(spec.name, CHAMPION, failed, served)
    if not moved:
        record(action="refused", reason=f"somebody moved the champion of {spec.name} at the same time")
    return moved


def _is_served(fleet: Fleet, model: ModelFleet, registered: RegisteredVersion, wait_s: float = 0.0) -> bool:
    if model.serving is None or model.serving.version != registered.version:
        return False
    deployment = model.deployment(model.serving.deployment)
    # A registry that was put back from a backup may have given the same number to other bytes.
    if deployment is None or deployment.bundle_digest != registered.bundle_digest:
        return False
    return fleet.settled(deployment, wait_s)


def _allocate(spec: RolloutSpec, fleet: Fleet, champion: str) -> Rollout:
    """Takes the next number. A canary of another version loses its traffic at once."""
    with fleet.files.lock():
        model = fleet.files.get(spec.name)
        before = running_rollout(model)
        model = superseding(model).changed(shadow=0)
        by, why = audit.who_made_champion(fleet.layout, spec.name, champion)
        rollout = Rollout(
            generation=model.generation,
            request_id=spec.request_id,
            version=champion,
            previous=model.serving.version if model.serving else None,
            by=by,
            why=why,
            started_at=time.time(),
        )
        if before and before.version == champion:
            # A repeated event: whoever held the version where it was still does.
            kept = {field: getattr(before, field) for field in ("paused", "step", "watches", "capacity")}
            rollout = rollout.model_copy(update=kept)
        model = model.with_rollout(rollout)
        if model.canary and model.canary.version != champion:
            model = model.changed(canary=None, weights=_all_on(model.serving))
        fleet.files.write(model)
    fleet.gateway.apply()
    return rollout


def _planned(spec: RolloutSpec, fleet: Fleet, rollout: Rollout, reason: str) -> RolloutResult:
    registered = fleet.registry.get(spec.name, rollout.version)
    return RolloutResult(
        name=spec.name,
        generation=rollout.generation,
        phase=spec.phase,
        outcome="done",
        reason=reason,
        version=rollout.version,
        previous=rollout.previous,
        steps=registered.recipe.rollout.steps,
    )


# --- start_canary ------------------------------------------------------------------------------------------------


def start_canary(spec: RolloutSpec, fleet: Fleet) -> RolloutResult:
    """Has replicas of the version ready and known to the gateway, without traffic."""
    model = fleet.current(spec.name, spec.generation)
    rollout = required_rollout(model, spec.generation)
    if rollout.outcome == "failed":
        return _result(spec, "unhealthy", rollout.reason, model=model)
    if "start_canary" in rollout.phases:
        return _result(spec, "done", "started before", model=model)
    registered = fleet.registry.get(spec.name, rollout.version)
    if _is_served(fleet, model, registered):
        if _serves_short(model):
            _make_room(spec, fleet, spec.generation)
            starting.complete(fleet, spec.name, generation=spec.generation)
        fleet.change(spec.name, spec.generation, lambda model: with_phase(model, spec.generation, "start_canary"))
        return _result(spec, "done", f"version {rollout.version} is served already", model=model)
    warm = _warm_deployment(fleet, model, registered)
    try:
        deployment = _reuse(spec, fleet, warm) if warm else _start(spec, fleet, registered)
        _route(spec, fleet, deployment)
    except (IntegrityError, ReplicaFailed) as error:
        return _give_up(spec, fleet, str(error))
    reason = "its replicas were still warm" if warm else f"started {len(deployment.replicas)} replicas"
    return _result(spec, "done", reason, model=fleet.files.get(spec.name))


def _serves_short(model: ModelFleet) -> bool:
    """Whether what serves lacks replicas: they made place for a version that did not come."""
    serving = model.deployment(model.serving.deployment) if model.serving else None
    return serving is not None and serving.is_short


def _warm_deployment(fleet: Fleet, model: ModelFleet, registered: RegisteredVersion) -> Deployment | None:
    """Replicas of an earlier rollout that serve this very bundle and are well. Not those that serve now, of which one
    may be gone for good: a deployment cannot be tried against itself."""
    serving = model.serving.deployment if model.serving else None
    for found in model.deployments:
        if found.generation == serving:
            continue
        same = (found.version, found.bundle_digest) == (registered.version, registered.bundle_digest)
        if same and found.ready and found.routed and fleet.all_healthy(found):
            return found
    return None


def _make_room(spec: RolloutSpec, fleet: Fleet, kept: int) -> None:
    """Removes what serves nothing, but for the deployment of the generation `kept`."""
    stale = unused(fleet.current(spec.name, spec.generation), kept)
    if stale:
        _forget_sides(spec, fleet, {found.generation for found in stale})
        fleet.discard(spec.name, spec.generation, stale)


def _forget_sides(spec: RolloutSpec, fleet: Fleet, gone: set[int]) -> None:
    """The gateway must not fall back on replicas that are about to be removed."""

    def forget(model: ModelFleet) -> ModelFleet:
        kept = {
            side: served
            for side, served in (("canary", model.canary), ("previous", model.previous))
            if served and served.deployment not in gone
        }
        return model.changed(canary=kept.get("canary"), previous=kept.get("previous"))

    fleet.change(spec.name, spec.generation, forget)


def _reuse(spec: RolloutSpec, fleet: Fleet, warm: Deployment) -> Deployment:
    _make_room(spec, fleet, warm.generation)
    return warm


def _start(spec: RolloutSpec, fleet: Fleet, registered: RegisteredVersion) -> Deployment:
    """Only once the bundle is known to be whole does anything warm make room."""
    bundle_path = fleet.fetch_bundle(registered)
    _make_room(spec, fleet, spec.generation)
    return starting.start(fleet, registered, bundle_path, generation=spec.generation)


def _route(spec: RolloutSpec, fleet: Fleet, deployment: Deployment) -> None:
    """Makes the gateway know the replicas, and waits until it finds them healthy."""
    starting.serve(fleet, spec.name, deployment.generation, set(), by=spec.generation)
    canary = Served(version=deployment.version, generation=spec.generation, deployment=deployment.generation)
    fleet.change(
        spec.name,
        spec.generation,
        lambda model: with_phase(model.changed(canary=canary), spec.generation, "start_canary"),
    )


def _give_up(spec: RolloutSpec, fleet: Fleet, reason: str) -> RolloutResult:
    """No traffic ever reached it: its replicas are removed at once."""
    fleet.say(f"unhealthy: {reason}")
    model = fleet.change(
        spec.name,
        spec.generation,
        lambda model: with_phase(
            model.changed(canary=None, weights=_all_on(model.serving)),
            spec.generation,
            "start_canary",
            **ended("failed", reason),
        ),
    )
    fleet.discard(
        spec.name, spec.generation, [found for found in model.deployments if found.generation == spec.generation]
    )
    return _result(spec, "unhealthy", reason, model=model)


# --- promote, roll_back, retire ----------------------------------------------------------------------------------


def promote(spec: RolloutSpec, fleet: Fleet) -> RolloutResult:
    """The canary, which has all the traffic by now, becomes what is served; unless somebody has changed his mind."""
    champion = fleet.registry.alias(spec.name, CHAMPION)
    model = fleet.current(spec.name, spec.generation)
    rollout = required_rollout(model, spec.generation)
    if rollout.outcome == "superseded":
        return _result(spec, "superseded", rollout.reason, model=model)
    if champion != rollout.version and model.canary is not None:
        return _drop(spec, fleet, f"the champion is version {champion or 'none'} now")

    def take_over(model: ModelFleet) -> ModelFleet:
        rollout = required_rollout(model, spec.generation)
        if model.canary is None and (model.serving is None or model.serving.version != rollout.version):
            raise SpecError(f"{spec.name}: rollout {spec.generation} has no canary to promote ({rollout.outcome})")
        if model.canary is None:
            return with_phase(model, spec.generation, "promote", **_promoted(model, spec.generation))
        canary = model.canary.model_copy(update={"generation": spec.generation})
        model = model.changed(serving=canary, previous=model.serving, canary=None, weights=_all_on(canary))
        return with_phase(model, spec.generation, "promote", **_promoted(model, spec.generation))

    model = fleet.change(spec.name, spec.generation, take_over)
    assert model.serving is not None
    fleet.registry.set_alias(spec.name, SERVING, model.serving.version)
    fleet.registry.tag(spec.name, model.serving.version, OUTCOME_TAG, "served")
    fleet.registry.tag(spec.name, model.serving.version, REASON_TAG, f"promoted by rollout {spec.generation}")
    drop_anchor(fleet.registry, fleet.layout.home_path, spec.name, model.serving.version)
    return _result(spec, "done", f"version {model.serving.version} is served", model=model)


def _drop(spec: RolloutSpec, fleet: Fleet, reason: str) -> RolloutResult:
    """Nobody wants the canary any more: it loses its traffic at once, and `retire` removes it."""

    def drop(model: ModelFleet) -> ModelFleet:
        model = model.changed(canary=None, weights=_all_on(model.serving))
        return with_phase(model, spec.generation, "promote", **ended("superseded", reason))

    return _result(spec, "superseded", reason, model=fleet.change(spec.name, spec.generation, drop))


def _promoted(model: ModelFleet, generation: int) -> dict[str, object]:
    """Its end is noted once: `retire` counts from then."""
    ended_at = required_rollout(model, generation).ended_at
    return {"outcome": "promoted", "ended_at": ended_at or time.time(), "paused": None}


def roll_back(spec: RolloutSpec, fleet: Fleet) -> RolloutResult:
    """The old version keeps all the traffic; the registry learns that the new one failed, and why."""
    if not spec.generation:
        return _end_planned(spec, fleet)
    model = fleet.current(spec.name, spec.generation)
    rollout = required_rollout(model, spec.generation)
    reason = spec.reason or rollout.reason or "rolled back by request"
    model = fleet.change(spec.name, spec.generation, partial(_given_back, spec.generation, reason))
    served = model.serving.version if model.serving else None
    if served != rollout.version:
        fleet.registry.tag(spec.name, rollout.version, OUTCOME_TAG, "failed")
        fleet.registry.tag(spec.name, rollout.version, REASON_TAG, reason[:4000])
        moved = _put_back(spec, fleet, rollout.version, served, reason)
        fleet.say(f"champion {'put back to' if moved else 'was moved by someone else; served is'} {served or 'none'}")
    # Not by the canary, which a first try that was killed has given back: its replicas may be an earlier rollout's.
    failed = [found for found in unused(model) if found.version == rollout.version]
    fleet.discard(spec.name, spec.generation, failed)
    starting.complete(fleet, spec.name, generation=spec.generation)
    return _result(spec, "done", reason, model=model)


def _given_back(generation: int, reason: str, model: ModelFleet) -> ModelFleet:
    model = model.changed(canary=None, weights=_all_on(model.serving))
    return with_phase(model, generation, "roll_back", **ended("failed", reason))


def _end_planned(spec: RolloutSpec, fleet: Fleet) -> RolloutResult:
    """Nobody goes on with a rollout whose plan failed for good. The champion stays, so the watcher asks for another."""
    known = fleet.files.get(spec.name).requested(spec.request_id)
    if known is None or known.outcome != "running":
        return _result(spec, "nothing_to_do", "the plan has left no rollout that runs")
    fleet.change(spec.name, known.generation, partial(_given_back, known.generation, spec.reason))
    return _result(spec, "nothing_to_do", f"rollout {known.generation} is over: {spec.reason}", version=known.version)


def retire(spec: RolloutSpec, fleet: Fleet) -> RolloutResult:
    """Keeps what was replaced warm for a while, then removes everything that serves nothing."""
    model = fleet.current(spec.name, spec.generation)
    rollout = required_rollout(model, spec.generation)
    registered = fleet.registry.get(spec.name, rollout.version)
    warm_until = (rollout.ended_at or time.time()) + registered.recipe.rollout.keep_warm_s
    if unused(model):
        fleet.say(f"version {model.previous.version if model.previous else '?'} stays warm until {_clock(warm_until)}")
    while unused(model) and time.time() < warm_until:
        time.sleep(RETIRE_POLL_S)
        if not fleet.is_newest(spec.name, spec.generation):
            raise Superseded
    model = fleet.change(spec.name, spec.generation, lambda model: model.changed(previous=None, canary=None))
    gone = unused(model)
    fleet.discard(spec.name, spec.generation, gone)
    starting.complete(fleet, spec.name, generation=spec.generation)
    model = fleet.change(spec.name, spec.generation, lambda model: with_phase(model, spec.generation, "retire"))
    return _result(spec, "done", f"removed {sum(len(found.replicas) for found in gone)} replicas", model=model)


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))


def _all_on(served: Served | None) -> dict[int, int]:
    return {served.deployment: 100} if served else {}


def _result(
    spec: RolloutSpec, outcome: Any, reason: str, *, version: str | None = None, model: ModelFleet | None = None
) -> RolloutResult:
    rollout = model.rollout(spec.generation) if model else None
    return RolloutResult(
        name=spec.name,
        generation=spec.generation or (model.generation if model else 0),
        phase=spec.phase,
        outcome=outcome,
        reason=reason,
        version=version or (rollout.version if rollout else spec.version),
        previous=rollout.previous if rollout else None,
    )
