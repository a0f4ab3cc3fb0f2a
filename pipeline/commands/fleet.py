"""`slipway fleet`: which versions the fleet has, on which replicas, how these are, and what its rollouts came to."""

import json
import time
from typing import Any

from rich.markup import escape
from rich.table import Table

from pipeline.commands.output import console, here, in_seconds
from pipeline.errors import SpecError
from pipeline.fleet.analysis.live import FleetView, view_fleet
from pipeline.fleet.state import Rollout, Served, outcome_of
from pipeline.fleet.views import ModelView, role_of

SHOWN_ROLLOUTS = 5
HEALTH = {True: "[green]healthy[/green]", False: "[red]unhealthy[/red]", None: "[dim]not known[/dim]"}
COLOURS = {"promoted": "green", "unchanged": "dim", "running": "bold", "failed": "red", "rolled back": "yellow"}


def show(name: str | None, *, as_json: bool) -> None:
    """Prints every model, or the one that is asked for.

    Raises:
        SpecError: the fleet has no such model; the message names those that it has. Or a file cannot be read: what the
            others say is printed first.
    """
    layout, _ = here()
    fleet = view_fleet(layout.home_path)
    found = chosen(fleet, name)
    if as_json:
        print(json.dumps({model.name: as_plain(model) for model in found}, indent=2))
    elif not found and not fleet.damaged:
        console.print("Nothing was rolled out yet: `./slipway release demo` makes a first version.")
    for model in () if as_json else found:
        console.print(heading(model), soft_wrap=True)
        console.print(replicas_table(model))
        for line in aside_lines(model):
            console.print(line, soft_wrap=True)
        console.print(rollouts_table(model))
        console.print()
    if damaged := [file.reason for file in fleet.damaged if name in (None, file.model)]:
        raise SpecError("; ".join(damaged))


def chosen(fleet: FleetView, name: str | None) -> list[ModelView]:
    """All models, or the one called `name`."""
    if name is not None and name not in fleet.models:
        known = f"the fleet has no model {name!r}; it has {', '.join(fleet.models) or 'none yet'}"
        raise SpecError(fleet.damage_of(name) or known)
    return [model for model in fleet.models.values() if name in (None, model.name)]


def as_plain(model: ModelView) -> dict[str, Any]:
    """The model for programs: as in the fleet's state, with each replica's role, and rollouts as they stand."""
    found: dict[str, Any] = model.model_dump(mode="json")
    for replica, view in zip(found["replicas"], model.replicas, strict=True):
        replica["role"] = role_of(model, view.generation)
    for rollout, known in zip(found["history"], model.history, strict=True):
        rollout["outcome"] = outcome_of(known, model.generation)
    return found


def heading(model: ModelView) -> str:
    """One line: what serves, what is on trial, what is still warm."""
    sides = (("serving", model.serving), ("canary", model.canary), ("warm still", model.previous))
    said = [f"{word} {_named(served)}" for word, served in sides if served]
    return f"[bold]{escape(model.name)}[/bold]  {', '.join(said) or 'serving nothing'}"


def _named(served: Served) -> str:
    return f"version {served.version} (generation {served.generation})"


def replicas_table(model: ModelView) -> Table:
    """A line for each replica."""
    table = Table(box=None, pad_edge=False)
    for title in ("version", "role", "replica", "address", "health", "traffic"):
        # On a narrow terminal the replica's name takes two lines, rather than that the share of the traffic is cut off.
        name = title == "replica"
        table.add_column(title, justify="right" if title == "traffic" else "left", no_wrap=not name, overflow="fold")
    for replica in sorted(model.replicas, key=lambda found: (-found.weight, found.id)):
        address = f"{replica.host}:{replica.port}"
        role = role_of(model, replica.generation)
        use = role if replica.use == "serving" else f"{role}, {replica.use}"
        cells = (replica.version, use, replica.id, address)
        health = HEALTH[replica.healthy] if replica.aside is None else f"[red]put aside: {replica.aside.kind}[/red]"
        table.add_row(*cells, health, f"{replica.weight:g} %")
    return table


def aside_lines(model: ModelView) -> list[str]:
    """Why each replica that is given nothing was put aside, and for how long it has been."""
    now = time.time()
    return [
        f"[red]{replica.id}[/red] put aside for {in_seconds(max(0.0, now - replica.aside.since))}:"
        f" {escape(replica.aside.reason)}"
        for replica in model.replicas
        if replica.aside
    ]


def rollouts_table(model: ModelView) -> Table:
    """The last rollouts, the newest first."""
    table = Table(box=None, pad_edge=False)
    for title in ("rollout", "from", "to", "outcome", "began", "took", ""):
        table.add_column(title, justify="right" if title in ("rollout", "took") else "left")
    for rollout in reversed(model.history[-SHOWN_ROLLOUTS:]):
        outcome = outcome_of(rollout, model.generation)
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(rollout.started_at))
        table.add_row(
            *(str(rollout.generation), rollout.previous or "-", rollout.version),
            f"[{COLOURS.get(outcome, 'dim')}]{outcome}[/]",
            *(began, duration(rollout), escape(rollout.reason or rollout.why)),
        )
    return table


def duration(rollout: Rollout) -> str:
    """From its beginning to its end, or to now."""
    return in_seconds(max(0.0, (rollout.ended_at or time.time()) - rollout.started_at))
