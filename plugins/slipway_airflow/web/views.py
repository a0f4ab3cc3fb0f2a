"""What the page shows, as JSON: made from the fleet's read side, and nothing that is secret.

Everything that differs between two answers is in the fleet's files or in what the gateway says now, so the page may ask
every two seconds.
"""

import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from urllib.parse import quote

from pipeline import audit
from pipeline.contracts.base import Contract
from pipeline.fleet.analysis.comparison import Comparison
from pipeline.fleet.analysis.live import Damaged, FleetView, Judgement, view_fleet
from pipeline.fleet.state import Aside, Paused, Rollout, Served
from pipeline.fleet.views import ModelView, ReplicaView, gateway_health
from slipway_airflow.hooks.champions import Aliases
from slipway_airflow.web.presses import Action, controls

RUNNING = "running"
"""The outcome of a rollout that has none yet; a newer one that overtakes it leaves it so."""
MAX_PAST = 20
"""Rollouts that have ended, of each model."""
MAX_ENTRIES = 12
"""The newest of the audit log."""


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
    use: str
    """serving, starting, or leaving: it finishes what it has begun."""
    weight: float
    """Per cent of the model's traffic."""
    aside: Aside | None
    """Why it is given nothing for now."""


class RolloutRow(Contract):
    """A rollout, and where more is to be seen of it."""

    generation: int
    version: str
    previous: str | None
    phases: tuple[str, ...]
    step: int
    outcome: str
    reason: str
    by: str
    """Who asked for it; empty if nobody said."""
    why: str
    """Why they did."""
    paused: Paused | None
    comparisons: tuple[Comparison, ...]
    """The last judgement."""
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
    judgement: Judgement | None
    """What that rollout sees now."""
    controls: tuple[Action, ...]
    """What may be pressed."""
    history: tuple[RolloutRow, ...]
    """Newest first, the one under way left out."""
    mlflow_url: str | None


class AuditRow(Contract):
    """An entry of the audit log."""

    number: int
    at: float
    action: str
    actor: str
    model: str | None
    version: str | None
    reason: str


class FleetPage(Contract):
    """The whole page."""

    at: float
    user: str
    may_press: bool
    gateway_answers: bool
    gateway_url: str | None
    mlflow_answers: bool
    mlflow_url: str | None
    damaged: tuple[Damaged, ...]
    """Files that cannot be read; a model whose state is among them is left out."""
    models: tuple[ModelPage, ...]
    entries: tuple[AuditRow, ...]
    """Of the audit log, newest first."""


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


class Look(Contract):
    """The fleet's files and the gateway at one moment."""

    fleet: FleetView
    gateway_answers: bool
    entries: tuple[AuditRow, ...]


def look(home_path: Path) -> Look:
    """Everything that this home says."""
    fleet = view_fleet(home_path)
    told = any(replica.healthy is not None for model in fleet.models.values() for replica in model.replicas)
    return Look(
        fleet=fleet,
        gateway_answers=told or gateway_health(home_path) is not None,
        entries=tuple(audit_row(entry) for entry in islice(audit.newest_first(home_path), MAX_ENTRIES)),
    )


def fleet_page(
    seen: Look,
    aliases: Mapping[str, Aliases] | None,
    links: Links,
    *,
    user: str,
    may_press: bool,
    gateway_url: str | None = None,
) -> FleetPage:
    """The page.

    Args:
        aliases: by model; None while MLflow does not answer.
    """
    names = sorted({*seen.fleet.models, *(aliases or {})} - seen.fleet.unreadable)
    return FleetPage(
        at=time.time(),
        user=user,
        may_press=may_press,
        gateway_answers=seen.gateway_answers,
        gateway_url=gateway_url,
        mlflow_answers=aliases is not None,
        mlflow_url=links.mlflow_url,
        damaged=seen.fleet.damaged,
        models=tuple(model_page(name, seen, (aliases or {}).get(name), links) for name in names),
        entries=seen.entries,
    )


def model_page(name: str, seen: Look, aliases: Aliases | None, links: Links) -> ModelPage:
    """`aliases`: None if MLflow does not answer, or does not know the model."""
    model = seen.fleet.models.get(name)
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
        judgement=seen.fleet.judgements.get(name) if under_way else None,
        controls=controls(model, is_registered=aliases is not None),
        history=tuple(found for found in rollouts if found is not under_way)[:MAX_PAST],
        mlflow_url=links.model(name),
    )


def audit_row(entry: audit.Entry) -> AuditRow:
    return AuditRow(
        number=entry.number,
        at=entry.moment,
        action=entry.action,
        actor=entry.actor,
        model=entry.model,
        version=entry.version,
        reason=entry.why,
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
        use=found.use,
        weight=found.weight,
        aside=found.aside,
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
        by=found.by,
        why=found.why,
        paused=found.paused,
        comparisons=found.comparisons,
        started_at=found.started_at,
        ended_at=found.ended_at,
        run_url=links.run(found.request_id),
        mlflow_url=links.version(model.name, found.version),
    )
