"""Gives a deployment its replicas: all at once, or one at a time as the version that serves makes place.

A replica is written down as `starting` before anything runs, and serves once it has answered as the right version and
the gateway finds it healthy. Whoever is killed in between leaves that in the state; `grow` goes on from there.
"""

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.contracts.base import Contract
from pipeline.errors import IntegrityError, ReplicaFailed, TransientError
from pipeline.fleet.autoscaling.decisions import initial_replicas
from pipeline.fleet.capacity import Capacity, decide, needed
from pipeline.fleet.doors import replica_door
from pipeline.fleet.parts import Fleet, required_rollout
from pipeline.fleet.replicas import Place, replica_id
from pipeline.fleet.state import Deployment, ModelFleet, Replica
from pipeline.fleet.vllm import ReplicaPlan
from pipeline.registry.models import RegisteredVersion

HEALTHY_TIMEOUT_S = 30.0


class Source(Contract):
    """What a deployment's replicas are made of."""

    registered: RegisteredVersion
    bundle_path: Path
    generation: int
    """The deployment's; the rollout that works on it may be a newer one."""


def start(fleet: Fleet, registered: RegisteredVersion, bundle_path: Path, *, generation: int) -> Deployment:
    """The first replicas of rollout `generation`: all of them, or one where memory has no room for a second set.

    Raises:
        ReplicaFailed: there is no place for one, or one does not become ready.
    """
    name, settings = registered.name, registered.recipe.rollout
    count = wanted = _wanted(fleet, registered, generation)
    capacity = _capacity(fleet, registered, generation, wanted)
    if capacity.strategy == "replace":
        count = needed(settings.steps[0], wanted=count, places=capacity.places)
    source = Source(registered=registered, bundle_path=bundle_path, generation=generation)

    def begin(model: ModelFleet) -> ModelFleet:
        if model.deployment(generation):
            return model
        rollout = required_rollout(model, generation).model_copy(update={"step": 0})
        empty = Deployment(
            version=registered.version,
            generation=generation,
            bundle_digest=registered.bundle_digest,
            replicas=(),
            num_wanted=wanted,
            autoscale=settings.autoscale,
            routing=settings.routing,
        )
        return model.with_rollout(rollout).with_deployment(empty)

    fleet.change(name, generation, begin)
    return grow(fleet, source, count, by=generation)


def _wanted(fleet: Fleet, registered: RegisteredVersion, generation: int) -> int:
    """How many replicas the deployment is to have: decided once."""
    model = fleet.files.get(registered.name)
    known = model.deployment(generation)
    stable = model.deployment(model.serving.deployment) if model.serving else None
    return known.num_wanted if known else initial_replicas(registered.recipe.rollout, stable)


def _capacity(fleet: Fleet, registered: RegisteredVersion, generation: int, wanted: int) -> Capacity:
    """Decided once for each rollout, on what is measured then."""
    model = fleet.files.get(registered.name)
    rollout = required_rollout(model, generation)
    if rollout.capacity:
        return rollout.capacity
    stable = model.deployment(model.serving.deployment) if model.serving else None
    alive = stable.replicas if stable else ()
    settings = registered.recipe.rollout
    memory = fleet.replicas.host.memory([replica.id for replica in alive])
    capacity = decide(memory, asked=settings.strategy, alive=len(alive), wanted=wanted)
    fleet.say(f"strategy {capacity.strategy}: {capacity.reason}")

    def note(model: ModelFleet) -> ModelFleet:
        return model.with_rollout(required_rollout(model, generation).model_copy(update={"capacity": capacity}))

    fleet.change(registered.name, generation, note)
    return capacity


def prepare(fleet: Fleet, name: str, weight: int, *, generation: int) -> None:
    """Has as many replicas of the canary as `weight` per cent of the traffic need, where they are replaced one at a
    time.

    Raises:
        ReplicaFailed: one does not become ready.
        IntegrityError: the bundle's bytes are others now.
    """
    model = fleet.files.get(name)
    capacity = required_rollout(model, generation).capacity
    canary = model.deployment(model.canary.deployment) if model.canary else None
    if capacity is None or capacity.strategy == "surge" or canary is None:
        return
    count = needed(weight, wanted=canary.num_wanted, places=capacity.places)
    if len(canary.serving) < count:
        registered = fleet.registry.get(name, canary.version)
        bundle_path = fleet.fetch_bundle(registered)
        source = Source(registered=registered, bundle_path=bundle_path, generation=canary.generation)
        grow(fleet, source, count, by=generation)


def complete(fleet: Fleet, name: str, *, generation: int) -> None:
    """What serves has all its replicas again: those that made place, or could not be there at once.

    Raises:
        TransientError: one does not become ready now; what serves goes on serving.
    """
    model = fleet.current(name, generation)
    deployment = model.deployment(model.serving.deployment) if model.serving else None
    if deployment is None or not deployment.is_short:
        return
    registered = fleet.registry.get(name, deployment.version)
    try:
        if registered.bundle_digest != deployment.bundle_digest:
            raise IntegrityError(f"version {deployment.version} of {name} has other bytes now than what serves")
        source = Source(
            registered=registered, bundle_path=fleet.fetch_bundle(registered), generation=deployment.generation
        )
        grow(fleet, source, deployment.num_wanted, by=generation)
    except (IntegrityError, ReplicaFailed) as error:
        raise TransientError(
            f"version {deployment.version} of {name} serves with {len(deployment.serving)} of {deployment.num_wanted}"
            f" replicas: {error}"
        ) from error


def grow(fleet: Fleet, source: Source, count: int, *, by: int, places: int | None = None) -> Deployment:
    """Starts replicas until `count` serve. Where places are limited, one after the other.

    Args:
        by: the rollout that does so, or on whose behalf it is done.
        places: how many replicas of the model may run at once; 0: any number; None: as the rollout has found.
    """
    name = source.registered.name
    while True:
        model = fleet.current(name, by)
        _finish_leaving(fleet, model, by)
        deployment = model.deployment(source.generation)
        assert deployment is not None
        starting = [replica for replica in deployment.replicas if replica.use == "starting"]
        if not starting and len(deployment.serving) >= count:
            return deployment
        if not starting:
            capacity = required_rollout(model, by).capacity
            limit = places if places is not None else capacity.places if capacity else 0
            if limit:
                _make_place(fleet, model, source.generation, places=limit, by=by)
            fleet.change(name, by, partial(_with_starting, fleet, source, count, 1 if limit else count))
        _admit(fleet, source, by)


def _finish_leaving(fleet: Fleet, model: ModelFleet, by: int) -> None:
    """What somebody who was killed left half done."""
    ids = {replica.id for found in model.deployments for replica in found.replicas if replica.use == "leaving"}
    if ids:
        fleet.leave(model.name, by, ids)


def _make_place(fleet: Fleet, model: ModelFleet, generation: int, *, places: int, by: int) -> None:
    """A replica of the version that serves leaves, if there are as many already as may be, and another one stays."""
    if sum(len(found.replicas) for found in model.deployments) < places:
        return
    stable = model.deployment(model.serving.deployment) if model.serving else None
    if stable is None or stable.generation == generation or len(stable.serving) < 2:
        raise ReplicaFailed(f"{places} replicas of {model.name} run already, and none of them can make place")
    last = stable.dispensable(1)[0].id
    fleet.say(f"{last} makes place: {places} replicas fit at once")
    fleet.leave(model.name, by, {last})


def _with_starting(fleet: Fleet, source: Source, wanted: int, at_most: int, model: ModelFleet) -> ModelFleet:
    """Under the lock: two rollouts must not be given the same places, nor may two who mend the same deployment, such as
    a rollback and the autoscaler, both add what it lacks of the `wanted` ones."""
    deployment = model.deployment(source.generation)
    assert deployment is not None
    count = min(at_most, wanted - len(deployment.serving))
    if count <= 0 or any(replica.use == "starting" for replica in deployment.replicas):
        return model
    others = [found for found in fleet.gateway.models().values() if found.name != model.name]
    taken = {replica.address for found in (*others, model) for kept in found.deployments for replica in kept.replicas}
    known = {replica.id for replica in deployment.replicas}
    version = source.registered.version
    ids = (
        replica_id(model.name, version, generation=source.generation, index=index)
        for index in range(len(known) + count)
    )
    free = [name for name in ids if name not in known]
    regions = list(fleet.layout.ports().regions.items())
    places = _spread(fleet.replicas.places(count, taken), count, [replica.host for replica in deployment.replicas])
    added = tuple(
        Replica(id=name, host=host, port=port, use="starting", **_region_of(regions, host))
        for name, (host, port) in zip(free[:count], places, strict=True)
    )
    return model.with_deployment(deployment.model_copy(update={"replicas": (*deployment.replicas, *added)}))


def _spread(offered: list[Place], count: int, used: list[str]) -> list[Place]:
    """`count` of the places, each at the host that has the fewest replicas by then."""
    left, hosts, chosen = list(offered), list(used), []
    for _ in range(min(count, len(left))):
        place = min(left, key=lambda found: hosts.count(found[0]))
        left.remove(place)
        hosts.append(place[0])
        chosen.append(place)
    return chosen


def _region_of(regions: list[tuple[str, str]], host: str) -> dict[str, Any]:
    """The region whose address `host` is, and its rank."""
    return next(({"region": name, "rank": rank} for rank, (name, found) in enumerate(regions) if found == host), {})


def _admit(fleet: Fleet, source: Source, by: int) -> None:
    """Runs those that are starting, and gives them to the gateway once all have answered."""
    name, version = source.registered.name, source.registered.version
    deployment = fleet.files.get(name).deployment(source.generation)
    assert deployment is not None
    cores = sorted(os.sched_getaffinity(0))
    plans = [
        ReplicaPlan(
            replica=replica.model_copy(update={"use": "serving"}),
            model=name,
            version=version,
            generation=source.generation,
            bundle_path=source.bundle_path,
            bundle_digest=source.registered.bundle_digest,
            settings=source.registered.recipe.rollout,
            core=cores[int(replica.id.rpartition("-")[2]) % len(cores)],
            door=replica_door.secret(fleet.layout),
        )
        for replica in deployment.replicas
        if replica.use == "starting"
    ]
    started = time.monotonic()
    fleet.replicas.start(plans, lambda: fleet.is_newest(name, by))
    fleet.say(f"{len(plans)} replicas answer as version {version} ({time.monotonic() - started:.1f} s)")
    serve(fleet, name, source.generation, {plan.replica.id for plan in plans}, by=by)


def serve(fleet: Fleet, name: str, generation: int, ids: set[str], *, by: int) -> None:
    """Makes the gateway know replicas of deployment `generation`, and waits until it finds them healthy.

    Args:
        ids: those that served nothing yet, which are waited for: that another one is down is not their fault. Empty:
            all are waited for.

    Raises:
        ReplicaFailed: it does not.
    """

    def known(model: ModelFleet) -> ModelFleet:
        found = model.deployment(generation)
        assert found is not None
        return model.with_deployment(found.using("serving", ids).model_copy(update={"ready": True, "routed": True}))

    deployment = fleet.change(name, by, known).deployment(generation)
    assert deployment is not None
    new = tuple(replica for replica in deployment.replicas if replica.id in ids)
    awaited = deployment.model_copy(update={"replicas": new or deployment.replicas})
    if not fleet.gateway.wait(lambda: fleet.all_healthy(awaited), HEALTHY_TIMEOUT_S):
        raise ReplicaFailed(
            f"the gateway does not find every replica of version {deployment.version} healthy after"
            f" {HEALTHY_TIMEOUT_S:g} s, though they answered; see {fleet.gateway.folder}"
        )
