"""The fleet as status, the command line and Airflow's pages show it: its state, and each replica's health with it.

from pipeline.fleet.views import read_fleet
read_fleet(home_path)["banking77"].serving
"""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.contracts.base import Contract
from pipeline.fleet.state import Aside, Deployment, ModelFleet, Replica, Rollout, Served, read_models
from pipeline.stack.layout import Layout, Ports

ADMIN_TIMEOUT_S = 2.0


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
