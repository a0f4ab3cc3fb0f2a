"""What a person does to the fleet outside a rollout: taking the last version change back."""

import time
from typing import Final

from pipeline.contracts.base import Contract
from pipeline.errors import SpecError, TransientError
from pipeline.fleet.gateway import Gateway
from pipeline.fleet.parts import Aliases
from pipeline.fleet.state import Deployment, ModelFleet, Rollout, Served
from pipeline.registry.models import CHAMPION, SERVING, Registry
from pipeline.stack.layout import Layout

ROLLED_BACK: Final = "rolled back"
"""How a rollout ends that a person asked for by `rollback`."""


class RolledBack(Contract):
    """What `rollback` did."""

    name: str
    version: str
    """The version that is the champion now."""
    replaced: str | None
    immediate: bool
    """The traffic has moved already; otherwise the rollout that the alias starts has to start replicas first."""
    reason: str


def rollback(layout: Layout, name: str, registry: Aliases | None = None) -> RolledBack:
    """Back to the version before.

    While its replicas are warm this is a weight change and takes effect at once; the alias follows. Otherwise only
    the alias moves, and the rollout that this starts does the rest. During a rollout, the canary is what is taken back.

    Raises:
        SpecError: there is no version to go back to.
        TransientError: the gateway or MLflow does not answer now, or somebody moved the alias at the same time.
    """
    registry = registry or Registry(layout.ports().url("mlflow"), layout.home_path)
    gateway = Gateway(layout)
    serving = _cut_short(registry, gateway.files.get(name))
    if serving is not None:
        replaced = _move_aliases(registry, name, serving, served=True)
        reason = f"the traffic was on version {serving} already; the registry says so now, too"
        return RolledBack(name=name, version=serving, replaced=replaced, immediate=True, reason=reason)
    with gateway.files.lock():
        model = gateway.files.get(name)
        target = _warm_target(gateway, model)
        if target is not None:
            model = _moved(model, target)
            gateway.files.write(model)
            gateway.apply()
    version = target.version if target else _previous_version(model)
    champion = _move_aliases(registry, name, version, served=target is not None)
    if target is None:
        reason = f"no replica of version {version} is warm: the rollout that the alias starts brings it"
        return RolledBack(name=name, version=version, replaced=champion, immediate=False, reason=reason)
    reason = f"all traffic is on version {version}, whose replicas were warm"
    return RolledBack(name=name, version=version, replaced=champion, immediate=True, reason=reason)


def _cut_short(registry: Aliases, model: ModelFleet) -> str | None:
    """The version to which a rollback moved the traffic that died before it moved the aliases; None if none did."""
    last = model.rollout(model.generation)
    if last is None or last.outcome != ROLLED_BACK or model.serving is None:
        return None
    return model.serving.version if registry.alias(model.name, CHAMPION) == last.previous else None


def _move_aliases(registry: Aliases, name: str, version: str, *, served: bool) -> str | None:
    """The registry follows.

    Returns:
        The champion before.
    """
    try:
        champion = registry.alias(name, CHAMPION)
        if champion != version and not registry.compare_and_set_alias(name, CHAMPION, champion, version):
            raise TransientError(f"somebody moved the champion of {name} at the same time")
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
    """What is serving while a canary is on trial, else what served before if it still can."""
    target = model.serving if model.canary else model.previous
    deployment = model.deployment(target.deployment) if target else None
    return target if deployment and _is_well(gateway, deployment) else None


def _is_well(gateway: Gateway, deployment: Deployment) -> bool:
    health = gateway.healthy() or {}
    return deployment.routed and all(health.get(replica.address, False) for replica in deployment.replicas)


def _moved(model: ModelFleet, target: Served) -> ModelFleet:
    """A rollout of its own number, so that whichever is under way ends as superseded."""
    generation = model.generation + 1
    moment = time.time()
    rollout = Rollout(
        generation=generation,
        request_id=f"rollback-{generation}",
        version=target.version,
        previous=model.serving.version if model.serving else None,
        phases=("rollback",),
        outcome=ROLLED_BACK,
        reason="asked for",
        started_at=moment,
        ended_at=moment,
    )
    serving = target.model_copy(update={"generation": generation})
    return model.changed(
        generation=generation,
        serving=serving,
        previous=None if model.canary else model.serving,
        canary=None,
        weights={target.deployment: 100},
    ).with_rollout(rollout)


def _previous_version(model: ModelFleet) -> str:
    """The version that the last promotion replaced."""
    serving = model.serving.version if model.serving else None
    for rollout in reversed(model.history):
        if rollout.outcome == "promoted" and rollout.previous and rollout.version == serving != rollout.previous:
            return rollout.previous
    raise SpecError(f"{model.name} has no earlier version to go back to; promote one with `slipway promote`")
