"""The way from MLflow's pages to what is served: Markdown that leads to the page Fleet in Airflow."""

from pathlib import Path
from urllib.parse import quote

from pipeline.stack.layout import Layout


def fleet_link(home_path: Path, name: str) -> str:
    """For the description of model `name` and of its versions; empty where the home has no stack, and so no Airflow."""
    layout = Layout(home_path)
    if not layout.stack_path.exists():
        return ""
    url = f"{layout.ports().public_url('airflow')}/plugin/fleet/slipway/fleet?model={quote(name, safe='')}"
    return f"[What is served of it, and why: the page Fleet in Airflow]({url})"
