"""What a rollout moves, and the only ways in which it changes the fleet's state.

Every change is made under the lock, checked against a newer rollout, written, and then applied to the gateway. Who is
killed in between leaves a state file that is ahead of the gateway; the next change, of whichever rollout, applies it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.errors import TransientError
from pipeline.fleet import epochs
from pipeline.fleet.autoscaling import scraping
from pipeline.fleet.gateway import Gateway
from pipeline.fleet.replicas import Replicas
from pipeline.fleet.state import Deployment, ModelFleet, Paused, Replica, Rollout
from pipeline.fleet.vllm import DRAIN_S
from pipeline.registry.models import RegisteredVersion
from pipeline.stack.layout import Layout


class Superseded(Exception):
    """A newer rollout of the same model has begun; this one ends where it is."""


class Aliases(Protocol):
    """What a rollout asks of the registry."""

    def get(self, name: str, version: str) -> RegisteredVersion: ...

    def alias(self, name: str, alias: str) -> str | None: ...

    def set_alias(self, name: str, alias: str, version: str) -> None: ...

    def compare_and_set_alias(self, name: str, alias: str, expected: str | None, version: str | None) -> bool: ...

    def tag(self, name: str, version: str, key: str, value: str) -> None: ...


@dataclass(kw_only=True)
class Fleet:
    """The parts of one home's fleet."""

    layout: Layout
    registry: Aliases
    replicas: Replicas
    fetch_bundle: Callable[[RegisteredVersion], Path]
    """A verified local folder.

    Raises:
        IntegrityError: its bytes are not what was registered.
    """
    fetch_predictions: Callable[[RegisteredVersion], Path | None]
    """The version's predictions.jsonl, whose prompts the probes use."""
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.gateway = Gateway(self.layout)
        self.files = self.gateway.files

    def change(self, name: str, generation: int, change: Callable[[ModelFleet], ModelFleet]) -> ModelFleet:
        """Changes the state on behalf of rollout `generation` and brings the gateway to it.

        Raises:
            Superseded: a newer rollout has begun.
            TransientError: the gateway does not take it now; the state stays changed.
        """
        with self.files.lock():
            model = self.files.get(name)
            if model.generation > generation:
                raise Superseded
            model = change(model)
            self.files.write(model)
        self.gateway.apply()
        return model

    def current(self, name: str, generation: int) -> ModelFleet:
        """The state as it is now, the gateway brought to it."""
        return self.change(name, generation, lambda model: model)

    def is_newest(self, name: str, generation: int) -> bool:
        return self.files.get(name).generation <= generation

    def paused(self, name: str, generation: int) -> Paused | None:
        """Whether a person holds rollout `generation` now.

        Raises:
            Superseded: a newer rollout has begun.
        """
        model = self.files.get(name)
        if model.generation > generation:
            raise Superseded
        return required_rollout(model, generation).paused

    def all_healthy(self, deployment: Deployment) -> bool:
        """Whether the gateway sees every serving replica of it that is not put aside answering its health check."""
        health = self.gateway.healthy() or {}
        return bool(deployment.trusted) and all(health.get(replica.address, False) for replica in deployment.trusted)

    def some_healthy(self, deployment: Deployment) -> bool:
        """Whether the gateway sees any of its serving replicas answering; taken for granted while it does not say."""
        health = self.gateway.healthy()
        return health is None or any(health.get(replica.address, False) for replica in deployment.serving)

    def settled(self, deployment: Deployment, timeout_s: float) -> bool:
        """Whether it is alive and becomes healthy in time: after a restart of the machine, say. The gateway notices
        only after some seconds that a replica is gone."""
        return (
            self.gateway.wait(
                lambda: self.all_healthy(deployment) or not self.replicas.alive(deployment.serving), timeout_s
            )
            and self.all_healthy(deployment)
            and self.replicas.alive(deployment.serving)
        )

    def discard(self, name: str, generation: int, unwanted: list[Deployment]) -> None:
        """Takes deployments that no traffic goes to out of the gateway, lets them finish, and removes them."""
        if not unwanted:
            return
        gone = {deployment.generation for deployment in unwanted}
        leaving = {replica.id for deployment in unwanted for replica in deployment.replicas}
        if leaving:
            self.leave(name, generation, leaving)
        self.change(
            name,
            generation,
            lambda model: model.changed(
                deployments=tuple(found for found in model.deployments if found.generation not in gone)
            ),
        )

    def leave(self, name: str, generation: int, ids: set[str]) -> None:
        """Takes replicas out of the gateway, lets them finish what they have begun, ends and forgets them.

        What still hangs after `DRAIN_S` is ended all the same: one request without an end must not hold a rollout.
        """
        model = self.change(name, generation, lambda model: _each(model, lambda found: found.using("leaving", ids)))
        leaving = [replica for found in model.deployments for replica in found.replicas if replica.id in ids]
        addresses = {replica.address for replica in leaving}
        self.gateway.wait(lambda: not self._takes_more(addresses) and not self._busy(name, leaving), DRAIN_S)
        busy = self._busy(name, leaving)
        hanging = [replica for replica in leaving if replica.address in busy]
        if hanging:
            self.say(f"{', '.join(replica.id for replica in hanging)}: requests still hang after {DRAIN_S} s; ended")
        self.change(name, generation, lambda model: _each(model, lambda found: _without_endpoints(found, ids)))
        self.replicas.remove(hanging, at_once=True)
        self.replicas.remove([replica for replica in leaving if replica.address not in busy])
        self.change(name, generation, lambda model: _each(model, lambda found: _without(found, ids)))
        self.say(f"removed {', '.join(replica.id for replica in leaving)}")

    def _takes_more(self, addresses: set[str]) -> bool:
        """Whether the gateway has not noticed yet that they are leaving, or does not say."""
        health = self.gateway.healthy()
        return health is None or any(health.get(address, False) for address in addresses)

    def _busy(self, name: str, replicas: list[Replica]) -> set[str]:
        """The addresses of those that still answer something, whichever of the model's clusters it came by.

        What came by the Envoy before the present one is not among the latter's figures, and one that does not answer
        has none: then they are asked themselves.
        """
        active = self.gateway.active_addresses(name)
        known = active or set()
        asked = active is None or epochs.read_standing(self.gateway.folder).draining is not None
        return {found.address for found in replicas if found.address in known or (asked and scraping.is_busy(found))}


def _each(model: ModelFleet, change: Callable[[Deployment], Deployment]) -> ModelFleet:
    return model.changed(deployments=tuple(change(found) for found in model.deployments))


def _without(deployment: Deployment, ids: set[str]) -> Deployment:
    kept = tuple(replica for replica in deployment.replicas if replica.id not in ids)
    return deployment.model_copy(update={"replicas": kept})


def _without_endpoints(deployment: Deployment, ids: set[str]) -> Deployment:
    """The gateway forgets those that are about to be ended: the whole deployment, if none is left."""
    return deployment if _without(deployment, ids).replicas else deployment.model_copy(update={"routed": False})


def unused(model: ModelFleet, *keep: int) -> list[Deployment]:
    """Deployments that neither serve nor are in `keep`."""
    kept = {*keep, *(generation for generation, weight in model.weights.items() if weight)}
    return [found for found in model.deployments if found.generation not in kept]


def with_phase(model: ModelFleet, generation: int, phase: str, **values: object) -> ModelFleet:
    """Notes that a phase is done, and what else became of the rollout."""
    rollout = required_rollout(model, generation)
    phases = (*(done for done in rollout.phases if done != phase), phase)
    return model.with_rollout(rollout.model_copy(update={"phases": phases, **values}))


def ended(outcome: str, reason: str) -> dict[str, object]:
    """What a rollout that is over says of itself."""
    return {"outcome": outcome, "reason": reason, "ended_at": time.time(), "paused": None}


def running_rollout(model: ModelFleet) -> Rollout | None:
    """The newest rollout, as long as nothing has become of it yet."""
    newest = model.rollout(model.generation)
    return newest if newest and newest.outcome == "running" else None


def superseding(model: ModelFleet) -> ModelFleet:
    """The model with the next generation, which ends the rollout that runs now."""
    running, generation = running_rollout(model), model.generation + 1
    if running:
        told = ended("superseded", f"rollout {generation} has begun")
        model = model.with_rollout(running.model_copy(update=told))
    return model.changed(generation=generation)


def required_rollout(model: ModelFleet, generation: int) -> Rollout:
    rollout = model.rollout(generation)
    if rollout is None:
        raise TransientError(f"{model.name} has no rollout {generation}: the phase `plan` must run first")
    return rollout
