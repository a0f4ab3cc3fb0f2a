"""The autoscaler's loop: looks at every model whose replicas follow the load, decides, acts.

Reads the fleet's state and the replicas' `/metrics`; writes the state through `scaling`, the audit log, and
`home/fleet/autoscaler/alive`, which it touches at every look and while it waits for a replica.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline import audit
from pipeline.errors import DataError, SpecError, TransientError
from pipeline.fleet import alive
from pipeline.fleet.autoscaling.decisions import Observation, decide, kept, reason
from pipeline.fleet.autoscaling.scaling import ACTOR, Scaler, scalable
from pipeline.fleet.autoscaling.scraping import observe
from pipeline.fleet.parts import Fleet, Superseded
from pipeline.fleet.state import Deployment, ModelFleet

FAILED_PAUSE_S = 60.0
"""So long a model is left alone whose new replica did not come up, or whose bundle was refused."""

Key = tuple[str, int]
"""Model and deployment."""


@dataclass
class Autoscaler:
    """Looks and acts, one model after the other."""

    fleet: Fleet
    clock: Callable[[], float] = time.monotonic
    _seen: dict[Key, list[Observation]] = field(default_factory=dict)
    _not_before: dict[Key, float] = field(default_factory=dict)
    _failures: dict[Key, str] = field(default_factory=dict)
    """Why the last attempt failed: the audit log is told once, not at every attempt."""

    def __post_init__(self) -> None:
        self.scaler = Scaler(self.fleet)

    def look(self) -> None:
        """Once at every model. What fails now is said, and tried again at a later look."""
        alive.touch(self.fleet.layout.fleet_path, ACTOR)
        watched = set()
        for model in self.fleet.gateway.models().values():
            deployment = scalable(model)
            if deployment is not None:
                watched.add((model.name, deployment.generation))
                self._try(model, deployment)
        self._seen = {key: seen for key, seen in self._seen.items() if key in watched}

    def _try(self, model: ModelFleet, deployment: Deployment) -> None:
        key = (model.name, deployment.generation)
        if self.clock() < self._not_before.get(key, 0.0):
            return
        try:
            self._one(model, deployment, key)
        except Superseded:
            self.fleet.say(f"{model.name}: a rollout has begun; the number of replicas stays until it is over")
            self._seen.pop(key, None)
        except TransientError as error:
            self.fleet.say(f"{model.name}: not now: {error}")
        except (DataError, SpecError) as error:
            self._failed(model, deployment, key, str(error))

    def _one(self, model: ModelFleet, deployment: Deployment, key: Key) -> None:
        if self.scaler.mend(model, deployment):
            self._seen.pop(key, None)
            return
        settings = deployment.autoscale
        assert settings is not None
        seen = kept([*self._seen.get(key, []), observe(deployment.serving)], settings)
        self._seen[key] = seen
        wanted = decide(seen, settings)
        if wanted != len(deployment.serving):
            self.scaler.scale(model, deployment, wanted, reason(seen, settings, wanted))
            self._seen.pop(key, None)

    def _failed(self, model: ModelFleet, deployment: Deployment, key: Key, why: str) -> None:
        self._not_before[key] = self.clock() + FAILED_PAUSE_S
        self._seen.pop(key, None)
        self.fleet.say(f"{model.name}: not scaled, and not tried again for {FAILED_PAUSE_S:g} s: {why}")
        if self._failures.get(key) == why:
            return
        self._failures[key] = why
        audit.record(
            self.fleet.layout,
            action="scaling-failed",
            actor=ACTOR,
            model=model.name,
            version=deployment.version,
            generation=deployment.generation,
            reason=why,
        )
