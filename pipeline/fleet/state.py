"""What the fleet is meant to be: one JSON file a model.

Reads `home/fleet/models/<name>.json`, which `pipeline.fleet.files` writes. The files are the truth that the gateway's
configuration is made from, so whoever dies between writing one and applying it is finished by the next writer. Reading
needs no lock: a file is only ever replaced as a whole.
"""

import time
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from pipeline.audit.entries import Event
from pipeline.contracts.base import Contract
from pipeline.contracts.rollout import Autoscale, Routing
from pipeline.errors import SpecError
from pipeline.fleet.analysis.comparison import Comparison
from pipeline.fleet.capacity import Capacity
from pipeline.stack.layout import LOOPBACK, Layout

MAX_HISTORY = 50


class Aside(Contract):
    """Why a replica is given nothing for now (`pipeline.fleet.replica_guard`)."""

    kind: Literal["hung", "crashing", "wrong", "slow"]
    reason: str
    since: float
    """Unix time."""


class Replica(Contract):
    """One process that serves one version."""

    id: str
    """Also the name of the supervised program, or of the container."""
    host: str = LOOPBACK
    """An IP address."""
    port: int
    region: str = ""
    """Where it is, if there are several regions."""
    rank: int = 0
    """Of its region: those of rank 0 take every request that they can."""
    use: Literal["serving", "starting", "leaving"] = "serving"
    """starting: the gateway is not told of it yet. leaving: the gateway gives it nothing new, and it finishes what it
    has begun before it is ended."""
    aside: Aside | None = None

    @property
    def address(self) -> str:
        """`host:port`, as the gateway's figures are kept by."""
        return f"{self.host}:{self.port}"


class Deployment(Contract):
    """The replicas that one rollout started. Its generation names it, in the gateway too."""

    version: str
    generation: int
    bundle_digest: str
    replicas: tuple[Replica, ...]
    num_wanted: int = 0
    """Replicas that it should have; it may be short while versions share the places that there are."""
    ready: bool = False
    """Every replica has answered with the right version."""
    routed: bool = False
    """The gateway knows it."""
    autoscale: Autoscale | None = None
    """Its recipe's: within which bounds its replicas follow the load."""
    routing: Routing = "fewest_requests"
    """Its recipe's: which of its replicas a request goes to."""

    @property
    def serving(self) -> tuple[Replica, ...]:
        """The replicas that take requests."""
        return tuple(replica for replica in self.replicas if replica.use == "serving")

    @property
    def is_short(self) -> bool:
        """Whether it lacks replicas that it should have."""
        return len(self.serving) < self.num_wanted

    @property
    def trusted(self) -> tuple[Replica, ...]:
        """Those of them that are not put aside."""
        return tuple(replica for replica in self.serving if replica.aside is None)

    @property
    def working(self) -> tuple[Replica, ...]:
        """Those of them that are given requests: of the first region that has any; further ones stand by."""
        first = min((replica.rank for replica in self.trusted), default=0)
        return tuple(replica for replica in self.trusted if replica.rank == first)

    def dispensable(self, count: int) -> tuple[Replica, ...]:
        """`count` of those that take requests, to be given up: those that are put aside first, then the newest; of a
        region that has as many as any, so that none is left without."""
        aside = [replica for replica in self.serving if replica.aside is not None]
        left, given_up = [*aside, *reversed(self.trusted)], []
        for _ in range(min(count, len(left))):
            num_in = Counter(replica.region for replica in left)
            most = max(num_in.values())
            given_up.append(next(replica for replica in left if num_in[replica.region] == most))
            left.remove(given_up[-1])
        return tuple(given_up)

    def using(self, use: str, ids: Container[str] | None = None) -> "Deployment":
        """The same deployment with `use` for the replicas `ids`, or for all of them."""
        changed = tuple(
            replica.model_copy(update={"use": use}) if ids is None or replica.id in ids else replica
            for replica in self.replicas
        )
        return self.model_copy(update={"replicas": changed})


class Served(Contract):
    """A version that takes, or may take, traffic."""

    version: str
    generation: int
    """The rollout that put it here."""
    deployment: int
    """The generation whose replicas it is: an older one when warm replicas were taken back."""


class Paused(Contract):
    """A rollout that a person holds where it is."""

    by: str
    """Who."""
    reason: str
    at: float
    """Unix time."""


def said(paused: Paused) -> str:
    """`by ann since 14:03:12 UTC: looking at a complaint`."""
    return f"by {paused.by} since {time.strftime('%H:%M:%S', time.gmtime(paused.at))} UTC: {paused.reason}"


class Rollout(Contract):
    """One numbered move from a version to another, and how far it got."""

    generation: int
    request_id: str
    version: str
    previous: str | None
    phases: tuple[str, ...] = ()
    """Done, in order."""
    step: int = 0
    """Index of the traffic step that `shift` is at."""
    watches: int = 0
    """How many steps it has begun to watch, repetitions too; each has a smaller share of the false alarms."""
    outcome: str = "running"
    """running, promoted, failed, rolled back, superseded, or unchanged."""
    reason: str = ""
    by: str = ""
    """Who asked for it; empty if nobody said."""
    why: str = ""
    """Why they did; empty if nobody said."""
    capacity: Capacity | None = None
    """How its replicas find a place; None until that is decided."""
    paused: Paused | None = None
    """While it is held: the weights stay, and a canary that is found worse is still taken back."""
    started_at: float
    ended_at: float | None = None
    comparisons: tuple[Comparison, ...] = ()
    """Its last judgement."""


class ModelFleet(Contract):
    """Everything about one model."""

    name: str
    generation: int = 0
    """The newest rollout's number; older ones are superseded."""
    serving: Served | None = None
    canary: Served | None = None
    previous: Served | None = None
    """What `serving` replaced, as long as its replicas are warm."""
    weights: dict[int, int] = Field(default_factory=dict)
    """Per cent of the traffic by deployment; they add up to 100 or there are none."""
    shadow: int = 0
    """Per cent of clients' requests of which the canary gets a copy; its answers are thrown away."""
    deployments: tuple[Deployment, ...] = ()
    history: tuple[Rollout, ...] = ()
    """The last rollouts, oldest first."""
    forgotten: dict[str, int] = Field(default_factory=dict)
    """How many there were before those, by outcome."""
    unrecorded: tuple[Event, ...] = ()
    """What the last change means for the audit log, which gets it right afterwards (`pipeline.fleet.files`)."""

    def deployment(self, generation: int) -> Deployment | None:
        return next((found for found in self.deployments if found.generation == generation), None)

    def rollout(self, generation: int) -> Rollout | None:
        return next((found for found in self.history if found.generation == generation), None)

    def requested(self, request_id: str) -> Rollout | None:
        """The rollout that a request was given before."""
        return next((found for found in self.history if found.request_id == request_id), None)

    def with_deployment(self, deployment: Deployment) -> "ModelFleet":
        """Adds it, or replaces the one of the same generation."""
        others = [kept for kept in self.deployments if kept.generation != deployment.generation]
        return self.changed(deployments=(*others, deployment))

    def without_deployment(self, generation: int) -> "ModelFleet":
        return self.changed(deployments=tuple(kept for kept in self.deployments if kept.generation != generation))

    def with_rollout(self, rollout: Rollout) -> "ModelFleet":
        """Adds it, or replaces the one of the same generation; only the last ones are kept."""
        others = [kept for kept in self.history if kept.generation != rollout.generation]
        ordered = sorted([*others, rollout], key=lambda kept: kept.generation)
        dropped = Counter(outcome_of(old, ordered[-1].generation) for old in ordered[:-MAX_HISTORY])
        return self.changed(history=tuple(ordered[-MAX_HISTORY:]), forgotten=dropped + Counter(self.forgotten))

    def changed(self, **values: Any) -> "ModelFleet":
        """A checked copy with other values. Without a canary, nobody gets copies of requests."""
        changed = {**dict(self), **values}
        return ModelFleet.model_validate(changed if changed["canary"] else {**changed, "shadow": 0})

    def replica_weight(self, deployment: Deployment, replica: Replica) -> float:
        """Per cent of the traffic that a replica of `deployment` takes when all are healthy."""
        working = deployment.working
        return round(self.weights.get(deployment.generation, 0) / len(working), 2) if replica in working else 0.0


def outcome_of(rollout: Rollout, newest: int) -> str:
    """As in the state; one that still runs when `newest`, a newer one, has begun was superseded."""
    return "superseded" if rollout.outcome == "running" and rollout.generation < newest else rollout.outcome


def models_path(home_path: Path) -> Path:
    return Layout(Path(home_path)).fleet_path / "models"


def read_models(home_path: Path) -> dict[str, ModelFleet]:
    """Every model's state by name.

    Raises:
        SpecError: a file is damaged.
    """
    return {path.stem: read_model(path) for path in model_paths(home_path)}


def model_paths(home_path: Path) -> list[Path]:
    """A file for each model, which is called like it."""
    return sorted(models_path(home_path).glob("[!.]*.json"))


def read_model(path: Path) -> ModelFleet:
    try:
        return ModelFleet.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise SpecError(f"{path} is damaged ({fault(error)}): remove it, then roll the model out again") from error


def fault(error: ValidationError) -> str:
    """The first thing that is wrong, in a line."""
    found = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, found["loc"])), found["msg"])))
