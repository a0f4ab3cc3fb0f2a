"""`slipway status`: what should be served, what is served and by whom, and where everything is."""

import json
from typing import Any

from rich.markup import escape
from rich.table import Table

from pipeline import settings
from pipeline.commands.output import console, here
from pipeline.fleet.analysis.live import view_fleet
from pipeline.fleet.views import ModelView
from pipeline.stack import loopback, mlflow_part
from pipeline.stack.layout import Layout
from pipeline.stack.supervisor import Supervisor

HEALTH = {True: "[green]healthy[/green]", False: "[red]unhealthy[/red]", None: "[dim]not in the gateway[/dim]"}
COLOURS = {"RUNNING": "green", "STARTING": "yellow", "BACKOFF": "red", "FATAL": "red", "EXITED": "red"}


def show(*, as_json: bool) -> None:
    layout, _ = here()
    found = collect(layout)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show_tables(found)


def collect(layout: Layout) -> dict[str, Any]:
    """Everything, as plain JSON.

    Raises:
        SpecError: the stack was never started here.
    """
    ports, credentials = layout.ports(), layout.access()
    seen, champions = view_fleet(layout.home_path), champion_versions(layout)
    fleet = seen.models
    names = sorted({*fleet, *(champions or {})} - seen.unreadable)
    models = {name: _model(name, champions, fleet.get(name)) for name in names}
    newest = models.get(rolled_out_last(fleet) or next(iter(models), ""), {})
    return {
        "champion": newest.get("champion"),
        "champions_known": champions is not None,
        "serving": newest.get("serving"),
        "replicas": newest.get("replicas", []),
        "gateway": ports.public_url("gateway"),
        "api_key": credentials.api_key,
        "airflow": ports.public_url("airflow"),
        "airflow_user": credentials.airflow_user,
        "airflow_password": credentials.airflow_password,
        "mlflow": ports.public_url("mlflow"),
        "home": str(layout.home_path),
        "models": models,
        "damaged": [found.reason for found in seen.damaged],
        "processes": _processes(layout),
    }


def _processes(layout: Layout) -> list[dict[str, Any]] | None:
    """Those that supervisord keeps; None in docker compose, which keeps services instead."""
    if settings.load().secrets_path:
        return None
    return [
        {"name": state.name, "state": state.state, "pid": state.pid, "log": str(state.log_path)}
        for state in Supervisor(layout.home_path).states()
    ]


def _show_processes(processes: list[dict[str, Any]] | None) -> None:
    if processes is None:
        console.print("`docker compose ps` shows the services.")
        return
    if not processes:
        console.print("The stack is down: `./slipway up` starts it.")
        return
    table = Table(title="Processes", title_justify="left", box=None, pad_edge=False)
    for heading in ("name", "state", "pid"):
        table.add_column(heading, justify="right" if heading == "pid" else "left")
    for process in processes:
        colour = COLOURS.get(process["state"], "dim")
        table.add_row(process["name"], f"[{colour}]{process['state']}[/{colour}]", str(process["pid"] or ""))
    console.print(table)


def show_tables(found: dict[str, Any]) -> None:
    _show_processes(found["processes"])
    console.print()
    for name, model in found["models"].items():
        console.print(_model_line(name, model, champions_known=found["champions_known"]), soft_wrap=True)
        for replica in model["replicas"]:
            aside = replica["aside"]
            health = f"[red]put aside: {aside['kind']}[/red]" if aside else HEALTH[replica["healthy"]]
            console.print(
                f"  {replica['id']}  version {replica['version']}  {health}  {replica['weight']:g} % of the traffic",
                soft_wrap=True,
            )
    for reason in found["damaged"]:
        console.print(f"[red]{escape(reason)}[/red]", soft_wrap=True)
    if not found["champions_known"]:
        console.print("MLflow does not answer, so which version is the champion is not known.", soft_wrap=True)
    elif not found["models"] and not found["damaged"]:
        console.print("No model is registered yet: `./slipway release demo` makes one.")
    console.print()
    console.print(
        f"Airflow  {found['airflow']}  ({found['airflow_user']} / {found['airflow_password']})", soft_wrap=True
    )
    console.print(f"MLflow   {found['mlflow']}", soft_wrap=True)
    console.print(f"Gateway  {found['gateway']}  (key {found['api_key']})", soft_wrap=True)


def champion_versions(layout: Layout) -> dict[str, str | None] | None:
    """Of every registered model, the version that the alias `champion` names; None while MLflow does not answer.

    By MLflow's REST API, since importing its client takes longer than everything else here.
    """
    url = f"{mlflow_part.tracking_uri(layout)}/api/2.0/mlflow/registered-models/search"
    found = loopback.read_json(url, {"max_results": "1000"}, settings.load().tracking_login)
    if found is None:
        return None
    return {model["name"]: _champion(model.get("aliases", [])) for model in found.get("registered_models", [])}


def _champion(aliases: list[dict[str, str]]) -> str | None:
    return next((alias["version"] for alias in aliases if alias["alias"] == "champion"), None)


def _model(name: str, champions: dict[str, str | None] | None, view: ModelView | None) -> dict[str, Any]:
    champion = (champions or {}).get(name)
    serving = view.serving if view else None
    return {
        "champion": {"name": name, "version": champion} if champion else None,
        "serving": {"name": name, "version": serving.version, "generation": serving.generation} if serving else None,
        "canary": view.canary.version if view and view.canary else None,
        "replicas": [replica.model_dump() for replica in view.replicas] if view else [],
    }


def _model_line(name: str, model: dict[str, Any], *, champions_known: bool) -> str:
    nobody = "none" if champions_known else "not known"
    champion = model["champion"]["version"] if model["champion"] else nobody
    serving = model["serving"]
    served = f"version {serving['version']} (generation {serving['generation']})" if serving else "nothing"
    canary = f", canary version {model['canary']}" if model["canary"] else ""
    return f"[bold]{name}[/bold]  champion {champion}, serving {served}{canary}"


def rolled_out_last(fleet: dict[str, ModelView]) -> str | None:
    """The model whose rollout began last."""
    rolled_out = [model for model in fleet.values() if model.history]
    return max(rolled_out, key=lambda model: model.history[-1].started_at).name if rolled_out else None
