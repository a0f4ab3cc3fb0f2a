"""What a person does to the fleet outside a rollout: taking the last version change back, and holding a rollout where
it is.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final, NamedTuple

from pipeline import audit
from pipeline.contracts.base import Contract
from pipeline.errors import SpecError, TransientError
from pipeline.fleet.files import FleetFiles
from pipeline.fleet.gateway import Gateway
from pipeline.fleet.parts import Aliases, running_rollout, superseding
from pipeline.fleet.state import Deployment, ModelFleet, Paused, Rollout, Served, said
from pipeline.registry.models import CHAMPION, SERVING, Registry
from pipeline.stack.layout import Layout

ROLLED_BACK: Final = "rolled back"
"""How a rollout ends that a person asked for by `rollback`."""


class Told(NamedTuple):
    """What the audit log is to know."""

    action: str
    by: str
    reason: str


class RolledBack(Contract):
    """What `rollback` did."""

    name: str
    version: str
    """The version that is the champion now."""
    replaced: str | None
    immediate: bool
    """The traffic has moved already; otherwise the rollout that the alias starts has to start replicas first."""
    reason: str


def pause(layout: Layout, name: str, *, by: str, reason: str) -> Rollout:
    """Holds the rollout of `name` that runs now: its weights stay where they are, and its watch goes on.

    Nothing moves any more when this returns. It needs neither the gateway nor MLflow.

    Args:
        by: who asks for it.
        reason: why; shown wherever the rollout is.

    Raises:
        SpecError: no rollout runs, all traffic is on the new version already, or somebody has paused it before.
    """

    def hold(running: Rollout) -> Rollout:
        if running.paused:
            raise SpecError(f"rollout {running.generation} of {name} is paused already, {said(running.paused)}")
        if "shift" in running.phases:
            raise SpecError(
                f"rollout {running.generation} of {name} has passed its last step, so nothing is left to hold:"
                f" `slipway rollback {name}` takes version {running.version} back"
            )
        return running.model_copy(update={"paused": Paused(by=by, reason=reason, at=time.time())})

    return _controlled(layout, name, hold, Told("pause", by, reason))


def resume(layout: Layout, name: str, *, by: str, reason: str) -> Rollout:
    """Lets a paused rollout go on from where it is.

    Returns:
        The rollout as it goes on.

    Raises:
        SpecError: no rollout runs, or it is not paused.
    """

    def let_go(running: Rollout) -> Rollout:
        if running.paused is None:
            raise SpecError(f"rollout {running.generation} of {name} is not paused: there is nothing to resume")
        return running.model_copy(update={"paused": None})

    return _controlled(layout, name, let_go, Told("resume", by, reason))


def _controlled(layout: Layout, name: str, change: Callable[[Rollout], Rollout], told: Told) -> Rollout:
    """Changes the rollout that runs, under the lock; `told` goes to the audit log first."""
    files = FleetFiles(layout.home_path)
    with files.lock():
        model = files.get(name)
        running = running_rollout(model)
        if running is None:
            newest = model.rollout(model.generation)
            past = f"its last one, {newest.generation}, is {newest.outcome}" if newest else "it was never rolled out"
            raise SpecError(f"no rollout of {name} runs now: {past}")
        changed = change(running)
        audit.record(
            layout,
            action=told.action,
            actor=told.by,
            model=name,
            version=running.version,
            generation=running.generation,
            reason=told.reason,
        )
        files.write(model.with_rollout(changed))
        return changed


def rollback(
    layout: Layout, name: str, registry: Aliases | None = None, *, by: str | None = None, reason: str = "asked for"
) -> RolledBack:
    """Back to the version before.

    While its replicas are warm this is a weight change and takes effect at once; the alias follows. Otherwise only
    the alias moves, and the rollout that this starts does the rest. During a rollout, the canary is what is taken back.

    Args:
        by: who asks; None: the user who runs this.
        reason: why, for the audit log.

    Raises:
        SpecError: there is no version to go back to, or somebody else changed what is served at the same time.
        TransientError: the gateway or MLflow does not answer now, or somebody moved the alias at the same time.
    """
    registry = registry or Registry(layout.ports().url("mlflow"), layout.home_path)
    told = Told("rollback", by or audit.person(), reason)
    gateway = Gateway(layout)
    before = gateway.files.get(name)
    with ThreadPoolExecutor(1) as pool:
        # The traffic does not wait for MLflow, which may be slow, or away.
        champion = pool.submit(registry.alias, name, CHAMPION)
        return _roll_back(gateway, registry, before, champion, told)


def _roll_back(
    gateway: Gateway, registry: Aliases, before: ModelFleet, champion: "Future[str | None]", told: Told
) -> RolledBack:
    """Moves the traffic if it can, then the aliases.

    Args:
        champion: the one that the person saw, which is being asked for.
    """
    name, layout = before.name, gateway.layout
    serving = _cut_short(before, champion)
    if serving is not None:
        replaced = _move_aliases(layout, registry, (name, champion, serving), told, served=True)
        reason = f"the traffic was on version {serving} already; the registry says so now, too"
        return RolledBack(name=name, version=serving, replaced=replaced, immediate=True, reason=reason)
    with gateway.files.lock():
        model = gateway.files.get(name)
        _refuse_second(before, model)
        target = _warm_target(gateway, model)
        if target is not None:
            model = _moved(model, target, told)
            gateway.files.write(model)
    if target is not None:
        gateway.apply()
    version = target.version if target else _previous_version(model)
    replaced = _move_aliases(layout, registry, (name, champion, version), told, served=target is not None)
    if target is None:
        reason = f"no replica of version {version} is warm: the rollout that the alias starts brings it"
        return RolledBack(name=name, version=version, replaced=replaced, immediate=False, reason=reason)
    reason = f"all traffic is on version {version}, whose replicas were warm"
    return RolledBack(name=name, version=version, replaced=replaced, immediate=True, reason=reason)


def _cut_short(model: ModelFleet, champion: "Future[str | None]") -> str | None:
    """The version to which a rollback moved the traffic that died before it moved the aliases; None if none did."""
    last = model.rollout(model.generation)
    if last is None or last.outcome != ROLLED_BACK or model.serving is None:
        return None
    return model.serving.version if champion.result() == last.previous else None


def _refuse_second(before: ModelFleet, now: ModelFleet) -> None:
    """What the person saw is no longer so: going back from there might be a second step back.

    Raises:
        SpecError: names what has begun meanwhile.
    """
    newest = now.rollout(now.generation)
    if newest and now.generation != before.generation:
        what = "rolled it back" if newest.outcome == ROLLED_BACK else f"began rollout {newest.generation}"
        raise SpecError(
            f"somebody else {what} at the same time, to version {newest.version} of {now.name}; nothing was changed."
            " Look at `slipway status`, then decide again"
        )


def _move_aliases(
    layout: Layout, registry: Aliases, move: tuple[str, "Future[str | None]", str], told: Told, *, served: bool
) -> str | None:
    """The registry follows.

    Args:
        move: the model, the champion that the person saw, and the version that it is to be.

    Returns:
        The champion before.
    """
    name, asked, version = move
    try:
        champion = asked.result()
        if champion != version:
            record = partial(audit.record, layout, actor=told.by, model=name, version=version)
            record(action=told.action, reason=told.reason, details={"from": champion, "to": version})
            if not registry.compare_and_set_alias(name, CHAMPION, champion, version):
                problem = f"somebody moved the champion of {name} at the same time"
                record(action="refused", reason=problem)
                raise TransientError(problem)
        if served:
            registry.set_alias(name, SERVING, version)
    except TransientError as error:
        traffic = f"the traffic is on version {version}" if served else "nothing was changed"
        raise TransientError(
            f"{traffic}, but the champion is perhaps another still: {error}. The fleet follows the champion, so run"
            f" `slipway promote {name} {version}` as soon as MLflow answers"
        ) from error
    return champion


def _warm_target(gateway: Gateway, model: ModelFleet) -> Served | None:
    """What is serving while another version is on trial, else what served before; None unless it still can."""
    target = model.serving if _on_trial(model) else model.previous
    deployment = model.deployment(target.deployment) if target else None
    return target if deployment and _is_well(gateway, deployment) else None


def _on_trial(model: ModelFleet) -> str | None:
    """The version that may take the place of what is serving: it has replicas already, or is about to."""
    running = running_rollout(model)
    serving = model.serving.version if model.serving else None
    wanted = model.canary.version if model.canary else running.version if running else None
    return wanted if wanted != serving else None


def _is_well(gateway: Gateway, deployment: Deployment) -> bool:
    health = gateway.healthy() or {}
    well = [health.get(replica.address, False) for replica in deployment.trusted]
    return deployment.routed and bool(well) and all(well)


def _moved(model: ModelFleet, target: Served, told: Told) -> ModelFleet:
    """A rollout of its own number, so that whichever is under way ends as superseded."""
    on_trial = _on_trial(model)
    replaced = on_trial or (model.serving.version if model.serving else None)
    model = superseding(model)
    generation, moment = model.generation, time.time()
    rollout = Rollout(
        generation=generation,
        request_id=f"rollback-{generation}",
        version=target.version,
        previous=replaced,
        phases=("rollback",),
        outcome=ROLLED_BACK,
        reason=told.reason,
        by=told.by,
        started_at=moment,
        ended_at=moment,
    )
    serving = target.model_copy(update={"generation": generation})
    return model.changed(
        serving=serving,
        previous=None if on_trial else model.serving,
        canary=None,
        weights={target.deployment: 100},
    ).with_rollout(rollout)


def _previous_version(model: ModelFleet) -> str:
    """What is serving while another version is on trial, else the version that the last promotion replaced."""
    serving = model.serving.version if model.serving else None
    if serving and _on_trial(model):
        return serving
    for rollout in reversed(model.history):
        if rollout.outcome == "promoted" and rollout.previous and rollout.version == serving != rollout.previous:
            return rollout.previous
    raise SpecError(f"{model.name} has no earlier version to go back to; promote one with `slipway promote`")
