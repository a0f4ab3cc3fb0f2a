"""What Airflow is told, wherever it runs: the local stack and docker compose differ in places and secrets alone.

All settings go through AIRFLOW__… variables, so that the one source of truth is this module. A secret is given either
as itself or, with `_cmd` at the end of its option's name, as the command that prints it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.settings import ROOT
from pipeline.stack.layout import Layout

Sections = dict[str, dict[str, str]]

IDLE_TRANSACTION_S = 30
"""How long a transaction of the scheduler may rest: as long as a scheduler without a heartbeat counts as alive.

Its task processes are forks that keep its connection to PostgreSQL open. When it is killed within a transaction, that
one would hold its lock on Airflow's pools for as long as they live, and no task would be queued.
"""


@dataclass(frozen=True, kw_only=True)
class AirflowPlace:
    """What depends on where Airflow runs."""

    layout: Layout
    listen: str
    """The address that the API server binds."""
    port: int
    base_url: str
    """Where people reach it."""
    execution_url: str
    """Where its own workers and triggerer reach it."""
    user: str
    """Who may sign in."""
    passwords_path: Path
    """The file of SimpleAuthManager: user to password."""


def variables(place: AirflowPlace, secrets: Sections) -> dict[str, str]:
    """The environment of every Airflow process."""
    found: dict[str, str] = {}
    for sections in (common(place), secrets):
        for section, options in sections.items():
            found |= {f"AIRFLOW__{section}__{key}".upper(): value for key, value in options.items()}
    return found


def scheduler_variables() -> dict[str, str]:
    """What the scheduler gets besides: PostgreSQL's own driver reads it."""
    return {"PGOPTIONS": f"-c idle_in_transaction_session_timeout={IDLE_TRANSACTION_S}s"}


def passwords(place: AirflowPlace, password: str) -> str:
    """What stands in `passwords_path`."""
    return json.dumps({place.user: password}) + "\n"


def common(place: AirflowPlace) -> Sections:
    """Everything but the secrets."""
    return {
        "core": {
            "executor": "LocalExecutor",
            "parallelism": "8",
            "dags_folder": str(ROOT / "dags"),
            "plugins_folder": str(ROOT / "plugins"),
            "load_examples": "False",
            "dags_are_paused_at_creation": "False",
            "simple_auth_manager_users": f"{place.user}:admin",
            "simple_auth_manager_passwords_file": str(place.passwords_path),
            "execution_api_server_url": place.execution_url,
        },
        "logging": {"base_log_folder": str(place.layout.logs_path / "airflow"), "colored_console_log": "False"},
        "api": {"host": place.listen, "port": str(place.port), "base_url": place.base_url},
        "scheduler": {
            # Tasks are handed on within a tenth of a second; costs about a tenth of a core.
            "scheduler_idle_sleep_time": "0.1",
            # A killed scheduler's or worker's tasks are taken over within half a minute, not five.
            "orphaned_tasks_check_interval": "15",
            "task_instance_heartbeat_timeout": "60",
            "task_instance_heartbeat_timeout_detection_interval": "10",
        },
        "triggerer": {"job_heartbeat_sec": "5", "triggerer_health_check_threshold": "20"},
        "dag_processor": {
            "dag_bundle_storage_path": str(place.layout.airflow_path / "bundles"),
            "dag_bundle_config_list": _bundles({"slipway": ROOT / "dags", "schedules": place.layout.dags_path}),
            "refresh_interval": "5",
            "bundle_refresh_check_interval": "5",
            "parsing_processes": "1",
        },
        "usage_data_collection": {"enabled": "False"},
    }


def _bundles(folders: Mapping[str, Path]) -> str:
    classpath = "airflow.dag_processing.bundles.local.LocalDagBundle"
    bundles = [{"name": name, "classpath": classpath, "kwargs": {"path": str(path)}} for name, path in folders.items()]
    return json.dumps(bundles)
