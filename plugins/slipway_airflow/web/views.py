"""What the page shows, as JSON: made from the fleet's read side, and nothing that is secret.

Everything that differs between two answers is in the fleet's files or in what the gateway says now, so the page may ask
every two seconds.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from pipeline.contracts.base import Contract
from pipeline.fleet.state import ModelView, ReplicaView, Rollout, Served, gateway_health, read_fleet
from slipway_airflow.hooks.champions import Aliases

RUNNING = "running"
"""The outcome of a rollout that has none yet; a newer one that overtakes it leaves it so."""


class VersionRow(Contract):
    """A version that has a part to play."""

    role: str
    """serving, canary, previous, or champion."""
    version: str
    generation: int | None
    """The rollout that gave it its part; None for a champion that is not served."""
    weight: int
    """Per cent of the model's traffic."""
    mlflow_url: str | None


class ReplicaRow(Contract):
    """A replica, and what the gateway thinks of it."""

    id: str
    version: str
    address: str
    health: str
    """healthy, unhealthy, or unknown: the gateway does not answer, or was not told of it yet."""
    weight: float
    """Per cent of the model's traffic."""


class RolloutRow(Contract):
    """A rollout, and where more is to be seen of it."""

    generation: int
    version: str
    previous: str | None
    phases: tuple[str, ...]
    step: int
    outcome: str
    reason: str
    started_at: float
    """Seconds since the epoch, like all times here."""
    ended_at: float | None
    run_url: str | None
    """Airflow's page of the DAG run; None if no run made it, as for a rollback by hand."""
    mlflow_url: str | None


class ModelPage(Contract):
    """A model's part of the page."""

    name: str
    generation: int
    """A press names it, so that nobody presses for a rollout that is over."""
    champion: str | None
    versions: tuple[VersionRow, ...]
    replicas: tuple[ReplicaRow, ...]
    rollout: RolloutRow | None
    """The one that is under way."""
    history: tuple[RolloutRow, ...]
    """Newest first, the one under way left out."""
    mlflow_url: str | None


class FleetPage(Contract):
    """The whole page."""

    at: float
    user: str
    may_press: bool
    gateway_answers: bool
    gateway_url: str | None
    mlflow_answers: bool
    mlflow_url: str | None
    models: tuple[ModelPage, ...]


class Links:
    """Addresses of other pages."""

    def __init__(self, *, airflow_path: str, mlflow_url: str | None, run_ids: set[str]) -> None:
        self.airflow_path = airflow_path.rstrip("/")
        self.mlflow_url = mlflow_url
        self.run_ids = run_ids
        """The rollout DAG's runs that there are."""

    def version(self, name: str, version: str) -> str | None:
        return f"{self.mlflow_url}/#/models/{quote(name)}/versions/{quote(version)}" if self.mlflow_url else None

    def model(self, name: str) -> str | None:
        return f"{self.mlflow_url}/#/models/{quote(name)}" if self.mlflow_url else None

    def run(self, run_id: str) -> str | None:
        known = run_id in self.run_ids
        return f"{self.airflow_path}/dags/rollout/runs/{quote(run_id, safe='')}" if known else None


def read(home_path: Path) -> tuple[dict[str, ModelView], bool]:
    """The fleet, and whether the gateway answers.

    Raises:
        SpecError: a file of the fleet's state is damaged.
    """
    fleet = read_fleet(home_path)
    told = any(replica.healthy is not None for model in fleet.values() for replica in model.replicas)
    return fleet, told or gateway_health(home_path) is not None


def fleet_page(
    fleet: Mapping[str, ModelView],
    aliases: Mapping[str, Aliases] | None,
    links: Links,
    *,
    user: str,
    may_press: bool,
    gateway: tuple[bool, str | None],
) -> FleetPage:
    """The page.

    Args:
        aliases: by model; None while MLflow does not answer.
        gateway: whether it answers, and where it is.
    """
    names = sorted({*fleet, *(aliases or {})})
    return FleetPage(
        at=time.time(),
        user=user,
        may_press=may_press,
        gateway_answers=gateway[0],
        gateway_url=gateway[1],
        mlflow_answers=aliases is not None,
        mlflow_url=links.mlflow_url,
        models=tuple(model_page(name, fleet.get(name), (aliases or {}).get(name), links) for name in names),
    )


def model_page(name: str, model: ModelView | None, aliases: Aliases | None, links: Links) -> ModelPage:
    champion = aliases.champion if aliases else None
    rollouts = [_rollout(model, found, links) for found in reversed(model.history)] if model else []
    under_way = rollouts[0] if rollouts and rollouts[0].outcome == RUNNING else None
    return ModelPage(
        name=name,
        generation=model.generation if model else 0,
        champion=champion,
        versions=tuple(_versions(name, model, champion, links)),
        replicas=tuple(_replica(found) for found in model.replicas) if model else (),
        rollout=under_way,
        history=tuple(found for found in rollouts if found is not under_way),
        mlflow_url=links.model(name),
    )


def _versions(name: str, model: ModelView | None, champion: str | None, links: Links) -> list[VersionRow]:
    parts: dict[str, Served | None] = {}
    if model:
        parts = {"serving": model.serving, "canary": model.canary, "previous": model.previous}
    rows = [
        VersionRow(
            role=role,
            version=served.version,
            generation=served.generation,
            weight=model.weights.get(served.deployment, 0) if model else 0,
            mlflow_url=links.version(name, served.version),
        )
        for role, served in parts.items()
        if served
    ]
    if champion is not None and champion not in {row.version for row in rows if row.role != "previous"}:
        url = links.version(name, champion)
        rows.append(VersionRow(role="champion", version=champion, generation=None, weight=0, mlflow_url=url))
    return rows


def _replica(found: ReplicaView) -> ReplicaRow:
    return ReplicaRow(
        id=found.id,
        version=found.version,
        address=f"{found.host}:{found.port}",
        health={True: "healthy", False: "unhealthy", None: "unknown"}[found.healthy],
        weight=found.weight,
    )


def _rollout(model: ModelView, found: Rollout, links: Links) -> RolloutRow:
    overtaken = found.outcome == RUNNING and found.generation < model.generation
    return RolloutRow(
        generation=found.generation,
        version=found.version,
        previous=found.previous,
        phases=found.phases,
        step=found.step,
        outcome="superseded" if overtaken else found.outcome,
        reason=found.reason or (f"rollout {found.generation + 1} began" if overtaken else ""),
        started_at=found.started_at,
        ended_at=found.ended_at,
        run_url=links.run(found.request_id),
        mlflow_url=links.version(model.name, found.version),
    )
