"""`slipway status`: what should be served, what is served and by whom, and where everything is."""

import json
from typing import Any

from rich.table import Table

from pipeline.commands.output import console, here
from pipeline.fleet.state import ModelView, read_fleet
from pipeline.stack import airflow_part, loopback, mlflow_part
from pipeline.stack.layout import Layout
from pipeline.stack.supervisor import Supervisor

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
    ports, credentials = layout.ports(), layout.credentials()
    fleet = read_fleet(layout.home_path)
    models = {name: _model(layout, name, fleet.get(name)) for name in _names(layout, fleet)}
    newest = models.get(rolled_out_last(fleet) or next(iter(models), ""), {})
    return {
        "champion": newest.get("champion"),
        "serving": newest.get("serving"),
        "replicas": newest.get("replicas", []),
        "gateway": f"http://127.0.0.1:{ports.gateway}",
        "api_key": credentials.api_key,
        "airflow": airflow_part.base_url(layout),
        "airflow_user": credentials.airflow_user,
        "airflow_password": credentials.airflow_password,
        "mlflow": mlflow_part.tracking_uri(layout),
        "home": str(layout.home_path),
        "models": models,
        "processes": [
            {"name": state.name, "state": state.state, "pid": state.pid, "log": str(state.log_path)}
            for state in Supervisor(layout.home_path).states()
        ],
    }


def show_tables(found: dict[str, Any]) -> None:
    processes = Table(title="Processes", title_justify="left", box=None, pad_edge=False)
    for heading in ("name", "state", "pid"):
        processes.add_column(heading, justify="right" if heading == "pid" else "left")
    for process in found["processes"]:
        colour = COLOURS.get(process["state"], "dim")
        processes.add_row(process["name"], f"[{colour}]{process['state']}[/{colour}]", str(process["pid"] or ""))
    console.print(processes if found["processes"] else "The stack is down: `./slipway up` starts it.")
    console.print()
    for name, model in found["models"].items():
        console.print(_model_line(name, model), soft_wrap=True)
        for replica in model["replicas"]:
            health = {True: "[green]healthy[/green]", False: "[red]unhealthy[/red]", None: "[dim]not known[/dim]"}
            console.print(
                f"  {replica['id']}  version {replica['version']}  {health[replica['healthy']]}"
                f"  {replica['weight']:g} % of the traffic",
                soft_wrap=True,
            )
    if not found["models"]:
        console.print("No model is registered yet: `./slipway release demo` makes one.")
    console.print()
    console.print(
        f"Airflow  {found['airflow']}  ({found['airflow_user']} / {found['airflow_password']})", soft_wrap=True
    )
    console.print(f"MLflow   {found['mlflow']}", soft_wrap=True)
    console.print(f"Gateway  {found['gateway']}  (key {found['api_key']})", soft_wrap=True)


def champion_version(layout: Layout, name: str) -> str | None:
    """The version that the alias `champion` names; None if there is none or MLflow does not answer."""
    alias = _mlflow(layout, "registered-models/alias", {"name": name, "alias": "champion"})
    return str(alias["model_version"]["version"]) if alias else None


def _model(layout: Layout, name: str, view: ModelView | None) -> dict[str, Any]:
    champion = champion_version(layout, name)
    serving = view.serving if view else None
    return {
        "champion": {"name": name, "version": champion} if champion else None,
        "serving": {"name": name, "version": serving.version, "generation": serving.generation} if serving else None,
        "canary": view.canary.version if view and view.canary else None,
        "replicas": [replica.model_dump() for replica in view.replicas] if view else [],
    }


def _model_line(name: str, model: dict[str, Any]) -> str:
    champion = model["champion"]["version"] if model["champion"] else "none"
    serving = model["serving"]
    served = f"version {serving['version']} (generation {serving['generation']})" if serving else "nothing"
    canary = f", canary version {model['canary']}" if model["canary"] else ""
    return f"[bold]{name}[/bold]  champion {champion}, serving {served}{canary}"


def _names(layout: Layout, fleet: dict[str, ModelView]) -> list[str]:
    registered = _mlflow(layout, "registered-models/search", {"max_results": "1000"}) or {}
    return sorted({model["name"] for model in registered.get("registered_models", [])} | set(fleet))


def rolled_out_last(fleet: dict[str, ModelView]) -> str | None:
    """The model whose rollout began last."""
    rolled_out = [model for model in fleet.values() if model.history]
    return max(rolled_out, key=lambda model: model.history[-1].started_at).name if rolled_out else None


def _mlflow(layout: Layout, method: str, params: dict[str, str]) -> dict[str, Any] | None:
    """MLflow's REST API, since importing its client takes longer than everything else here."""
    url = f"{mlflow_part.tracking_uri(layout)}/api/2.0/mlflow/{method}"
    found: dict[str, Any] | None = loopback.read_json(url, params)
    return found
