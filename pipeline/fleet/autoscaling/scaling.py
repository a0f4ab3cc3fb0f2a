"""Adds replicas to what is serving, and takes some away, without a client noticing.

A new replica is in the fleet's state as `starting` before it is started, and the gateway learns of it once it has
answered with the right version; one that goes is `leaving`: it gets nothing new, finishes, is ended and forgotten. Who
is killed in between leaves a state that says how far it was, and `mend` goes on from there. Every change is made on
behalf of the generation that was looked at, so a rollout that begins meanwhile wins.
"""

from dataclasses import dataclass

from pipeline import audit
from pipeline.errors import DataError, IntegrityError, ReplicaFailed, SpecError
from pipeline.fleet import starting
from pipeline.fleet.parts import Fleet, Superseded, running_rollout
from pipeline.fleet.state import Deployment, ModelFleet

ACTOR = "autoscaler"


def scalable(model: ModelFleet) -> Deployment | None:
    """What serves, if its number of replicas follows the load and no rollout moves, or has replicas to retire, now."""
    newest = model.rollout(model.generation)
    if model.serving is None or model.canary is not None or newest is None or running_rollout(model) is not None:
        return None
    if newest.outcome == "promoted" and "retire" not in newest.phases:
        return None
    deployment = model.deployment(model.serving.deployment)
    return deployment if deployment and deployment.autoscale and deployment.routed else None


@dataclass
class Scaler:
    """The one that acts."""

    fleet: Fleet

    def scale(self, model: ModelFleet, deployment: Deployment, wanted: int, reason: str) -> None:
        """Brings what serves from its present number of replicas to `wanted`.

        Raises:
            Superseded: a rollout has begun; what was half done is undone, or left for `mend`.
            DataError: there is no memory for a new replica, the bundle may not be loaded (any more), or a new replica
                does not serve what it should; none of the new ones is left.
            TransientError: the registry, the store or the gateway does not answer now.
        """
        current = len(deployment.serving)
        if wanted > current:
            wanted = self._fitting(model.name, deployment, wanted)
        self.fleet.say(f"{model.name}: from {current} to {wanted} replicas: {reason}")
        if wanted > current:
            self._grow(model, deployment, wanted, reason)
            return
        self._record(model, deployment, wanted, reason)
        self._want(model.name, model.generation, deployment.generation, wanted)
        leaving = deployment.dispensable(current - wanted)
        self.fleet.leave(model.name, model.generation, {replica.id for replica in leaving})

    def _fitting(self, name: str, deployment: Deployment, wanted: int) -> int:
        """As many of the replicas as the measured memory has room for, by the rule of a rollout: the recipe's `surge`
        measures nothing.

        Raises:
            ReplicaFailed: there is no room for one more.
        """
        current = len(deployment.serving)
        if self.fleet.registry.get(name, deployment.version).recipe.rollout.strategy == "surge":
            return wanted
        memory = self.fleet.replicas.host.memory([replica.id for replica in deployment.serving])
        if memory.room is None or current + memory.room >= wanted:
            return wanted
        self.fleet.say(f"{name}: {memory}: room for {memory.room} more, {wanted - current} are wanted")
        if not memory.room:
            raise ReplicaFailed(
                f"no memory for a replica of {name} beside the {current} that serve: free some, or lower"
                " rollout.autoscale.max_replicas or rollout.kv_cache_mib"
            )
        return current + memory.room

    def mend(self, model: ModelFleet, deployment: Deployment) -> bool:
        """Finishes what somebody who was killed had begun; whether there was anything."""
        leaving = {replica.id for replica in deployment.replicas if replica.use == "leaving"}
        if leaving:
            self.fleet.say(f"{model.name}: {', '.join(sorted(leaving))} was leaving: goes on")
            self.fleet.leave(model.name, model.generation, leaving)
            return True
        if any(replica.use == "starting" for replica in deployment.replicas) or deployment.is_short:
            self.fleet.say(f"{model.name}: {len(deployment.serving)} of {deployment.num_wanted} replicas: goes on")
            self._grow(model, deployment, deployment.num_wanted, "goes on with what was begun, or lost")
            return True
        return False

    def _grow(self, model: ModelFleet, deployment: Deployment, wanted: int, reason: str) -> None:
        name, generation = model.name, deployment.generation
        try:
            source = self._source(model, deployment)
            self._want(name, model.generation, generation, wanted)
            # What fits was measured just now; what the rollout measured may be hours old.
            grown = starting.grow(self.fleet, source, wanted, by=model.generation, places=0)
        except (DataError, SpecError, Superseded):
            self._undo(name, generation)
            raise
        self.fleet.say(f"{name}: {len(grown.serving)} replicas serve")
        self._record(model, deployment, len(grown.serving), reason)

    def _record(self, model: ModelFleet, deployment: Deployment, count: int, reason: str) -> None:
        audit.record(
            self.fleet.layout,
            action="scaled",
            actor=ACTOR,
            model=model.name,
            version=deployment.version,
            generation=deployment.generation,
            reason=reason,
            details={"from": len(deployment.serving), "to": count},
        )

    def _source(self, model: ModelFleet, deployment: Deployment) -> starting.Source:
        """What the deployment serves, checked anew."""
        registered = self.fleet.registry.get(model.name, deployment.version)
        if registered.bundle_digest != deployment.bundle_digest:
            raise IntegrityError(
                f"{model.name} version {deployment.version} has bundle {registered.bundle_digest} in the registry, but"
                f" its replicas serve {deployment.bundle_digest}; promote the version again"
            )
        folder = self.fleet.fetch_bundle(registered)
        return starting.Source(registered=registered, bundle_path=folder, generation=deployment.generation)

    def _want(self, name: str, by: int, generation: int, wanted: int) -> None:
        """Writes down how many there should be, so that nobody takes what was scaled for short."""

        def want(model: ModelFleet) -> ModelFleet:
            found = model.deployment(generation)
            return model.with_deployment(found.model_copy(update={"num_wanted": wanted})) if found else model

        self.fleet.change(name, by, want)

    def _undo(self, name: str, generation: int) -> None:
        """Removes what is starting: nothing has been sent to it yet."""
        newest = self.fleet.files.get(name)
        deployment = newest.deployment(generation)
        if deployment is None:
            return
        begun = {replica.id for replica in deployment.replicas if replica.use == "starting"}
        try:
            self._want(name, newest.generation, generation, len(deployment.serving))
            if begun:
                self.fleet.leave(name, newest.generation, begun)
        except Superseded:
            self.fleet.say(f"{name}: one rollout follows another; {', '.join(sorted(begun))} is removed later")
