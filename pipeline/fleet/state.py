"""What the fleet is meant to be: one JSON file a model, and the read side that status and Airflow's pages use.

Reads `home/fleet/models/<name>.json`, which `pipeline.fleet.files` writes. The files are the truth that the gateway's
configuration is made from, so whoever dies between writing one and applying it is finished by the next writer. Reading
needs no lock: a file is only ever replaced as a whole.

    from pipeline.fleet.state import read_fleet
    read_fleet(home_path)["banking77"].serving
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Container
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from pipeline.audit.entries import Event
from pipeline.contracts.base import Contract
from pipeline.contracts.rollout import Autoscale
from pipeline.errors import SpecError
from pipeline.fleet.analysis.comparison import Comparison
from pipeline.fleet.capacity import Capacity
from pipeline.stack.layout import LOOPBACK, Layout, Ports

MAX_HISTORY = 50
ADMIN_TIMEOUT_S = 2.0


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


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` in one move, flushed to disk first; only the owner may read it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def made_once(path: Path, text: Callable[[], str]) -> str:
    """What `path` holds, which is made by whoever comes first, readable by the owner alone; the others read it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        write_atomically(fresh, text())
        with suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
    return path.read_text()


# --- the read side: for status, the command line and Airflow's pages ------------------------------------------------


class ReplicaView(Contract):
    """A replica as status shows it."""

    id: str
    version: str
    generation: int
    host: str
    port: int
    healthy: bool | None
    """As the gateway sees it now; None if the gateway does not answer, or was not told of it yet."""
    use: Literal["serving", "starting", "leaving"] = "serving"
    """See `Replica.use`."""
    weight: float
    """Per cent of the model's traffic."""
    aside: Aside | None = None


class ModelView(Contract):
    """A model as status shows it."""

    name: str
    generation: int
    serving: Served | None
    canary: Served | None
    previous: Served | None
    weights: dict[int, int]
    replicas: tuple[ReplicaView, ...]
    history: tuple[Rollout, ...]
    forgotten: dict[str, int] = Field(default_factory=dict)
    """See `ModelFleet.forgotten`."""


def read_fleet(home_path: Path) -> dict[str, ModelView]:
    """Every model by name, with the health of each replica as the gateway sees it now."""
    return view_models(home_path, read_models(home_path))


def view_models(home_path: Path, models: dict[str, ModelFleet]) -> dict[str, ModelView]:
    """The same models with the health of each replica as the gateway sees it now."""
    health = gateway_health(home_path)
    return {name: _view(model, health) for name, model in models.items()}


def outcome_of(rollout: Rollout, newest: int) -> str:
    """As in the state; one that still runs when `newest`, a newer one, has begun was superseded."""
    return "superseded" if rollout.outcome == "running" and rollout.generation < newest else rollout.outcome


def role_of(model: ModelView, generation: int) -> str:
    """What the replicas of a generation are there for: serving, canary, previous (warm still), or spare: about to start
    or to go."""
    sides = {"serving": model.serving, "canary": model.canary, "previous": model.previous}
    return next((role for role, side in sides.items() if side and side.deployment == generation), "spare")


def gateway_health(home_path: Path) -> dict[str, bool] | None:
    """Whether the replica at each address is healthy; None if the gateway does not answer."""
    stack = Layout(Path(home_path)).stack_path
    if not stack.exists():
        return None
    url = f"{Ports.model_validate_json(stack.read_bytes()).url('gateway_admin')}/clusters?format=json"
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=ADMIN_TIMEOUT_S) as answer:
            return healthy_addresses(json.load(answer))
    except (urllib.error.URLError, OSError, ValueError):
        return None


def healthy_addresses(clusters: dict[str, Any]) -> dict[str, bool]:
    """From Envoy's `/clusters?format=json`; a host in several clusters is healthy if it is so in all of them."""
    found: dict[str, bool] = {}
    for cluster in clusters.get("cluster_statuses", []):
        for host in cluster.get("host_statuses", []):
            address = address_of(host)
            found[address] = found.get(address, True) and host["health_status"] == {"eds_health_status": "HEALTHY"}
    return found


def address_of(host: dict[str, Any]) -> str:
    """`host:port` of a host in Envoy's figures."""
    found = host["address"]["socket_address"]
    return f"{found['address']}:{found['port_value']}"


def _view(model: ModelFleet, health: dict[str, bool] | None) -> ModelView:
    replicas = tuple(
        _replica_view(model, deployment, replica, health)
        for deployment in model.deployments
        for replica in deployment.replicas
    )
    return ModelView(
        name=model.name,
        generation=model.generation,
        serving=model.serving,
        canary=model.canary,
        previous=model.previous,
        weights=model.weights,
        replicas=replicas,
        history=model.history,
        forgotten=model.forgotten,
    )


def _replica_view(
    model: ModelFleet, deployment: Deployment, replica: Replica, health: dict[str, bool] | None
) -> ReplicaView:
    known = health if deployment.routed and replica.use != "starting" else None
    return ReplicaView(
        id=replica.id,
        version=deployment.version,
        generation=deployment.generation,
        host=replica.host,
        port=replica.port,
        healthy=None if known is None else known.get(replica.address, False),
        use=replica.use,
        weight=model.replica_weight(deployment, replica),
        aside=replica.aside,
    )
