"""Airflow's four programs on this machine, and their health. What they are told is in `airflow_settings`.

Writes `home/airflow` and the logs of tasks below `home/logs/airflow`.
"""

import subprocess
import sys
from datetime import datetime
from importlib import metadata
from typing import Any

from pipeline.errors import SlipwayError
from pipeline.settings import ROOT, Settings, child_environment
from pipeline.stack import airflow_settings, jobs_part, loopback, mlflow_part, postgres_part
from pipeline.stack.airflow_settings import AirflowPlace, Sections
from pipeline.stack.layout import LOOPBACK, Layout
from pipeline.stack.supervisor import Program, Supervisor

PROGRAMS = {
    "airflow-api-server": ("api-server", "--workers", "1"),
    "airflow-scheduler": ("scheduler", "--skip-serve-logs"),
    "airflow-dag-processor": ("dag-processor",),
    "airflow-triggerer": ("triggerer", "--skip-serve-logs"),
}
HEARTBEATS = {
    "airflow-scheduler": "scheduler",
    "airflow-dag-processor": "dag_processor",
    "airflow-triggerer": "triggerer",
}
"""Program to its name in Airflow's health report."""
MIGRATE_TIMEOUT_S = 300


def base_url(layout: Layout) -> str:
    return layout.ports().url("airflow")


def environment(layout: Layout, settings: Settings) -> dict[str, str]:
    """What every Airflow process gets."""
    inherited = {
        "SLIPWAY_HOME": str(layout.home_path),
        "SLIPWAY_VENVS": str(settings.venvs_path),
        "SLIPWAY_STORE": settings.store_uri,
        **({"SLIPWAY_S3_ENDPOINT": settings.s3_endpoint} if settings.s3_endpoint else {}),
        "MLFLOW_TRACKING_URI": mlflow_part.tracking_uri(layout),
        "SLIPWAY_IMAGE_TAG": settings.image_tag,
        **jobs_part.variables(layout),
        **mlflow_part.QUIET,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}",
        # A program that sets its title must leave its environment readable: by that, `down` knows it for the home's.
        "SPT_NOENV": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "AIRFLOW_HOME": str(layout.airflow_path),
    }
    return inherited | airflow_settings.variables(_place(layout), _secrets(layout))


def programs(layout: Layout, settings: Settings) -> list[Program]:
    shared = environment(layout, settings)
    return [
        Program(
            name=name,
            command=(sys.executable, "-m", "airflow", *arguments),
            environment=shared | (airflow_settings.scheduler_variables() if name == "airflow-scheduler" else {}),
            directory=str(layout.airflow_path),
            start_retries=10,
            stop_wait_s=20,
            priority=300,
            autostart=False,
            # What a killed scheduler was running may finish by itself; the others leave nothing worth keeping.
            kill_remains=name != "airflow-scheduler",
        )
        for name, arguments in PROGRAMS.items()
    ]


def migrate(layout: Layout, settings: Settings) -> None:
    """Brings the database to this Airflow's schema; nothing to do if that version did it before.

    Raises:
        SlipwayError: it failed; the message names the log.
    """
    stamp = layout.airflow_path / "migrated"
    version = metadata.version("apache-airflow")
    if stamp.exists() and stamp.read_text() == version:
        return
    log_path = layout.log_path("airflow-migrate")
    with log_path.open("w") as log:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", "db", "migrate"],
            env=child_environment(environment(layout, settings)),
            cwd=layout.airflow_path,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            timeout=MIGRATE_TIMEOUT_S,
        )
    if done.returncode:
        raise SlipwayError(f"`airflow db migrate` failed (exit code {done.returncode}): see {log_path}")
    stamp.write_text(version)


def write_passwords(layout: Layout) -> None:
    """The file that Airflow's SimpleAuthManager reads."""
    place = _place(layout)
    place.passwords_path.touch(mode=0o600)
    place.passwords_path.write_text(airflow_settings.passwords(place, layout.credentials().airflow_password))


def unhealthy(layout: Layout, supervisor: Supervisor) -> list[str]:
    """The programs that are not healthy: not running, or without a heartbeat since they were started."""
    report = loopback.read_json(f"{base_url(layout)}/api/v2/monitor/health")
    if report is None or report.get("metadatabase", {}).get("status") != "healthy":
        return list(PROGRAMS)
    states = {state.name: state for state in supervisor.states()}
    return [
        name
        for name in PROGRAMS
        if name not in states
        or states[name].state != "RUNNING"
        or (name in HEARTBEATS and not _has_heartbeat(report.get(HEARTBEATS[name]), states[name].started_at))
    ]


def _has_heartbeat(part: dict[str, Any] | None, since: int) -> bool:
    if not part or part.get("status") != "healthy":
        return False
    latest = next((value for name, value in part.items() if name.startswith("latest_") and value), None)
    return latest is not None and datetime.fromisoformat(latest).timestamp() >= since


def _place(layout: Layout) -> AirflowPlace:
    url = base_url(layout)
    return AirflowPlace(
        layout=layout,
        listen=LOOPBACK,
        port=layout.ports().airflow,
        base_url=url,
        execution_url=f"{url}/execution/",
        user=layout.credentials().airflow_user,
        passwords_path=layout.airflow_path / "passwords.json",
    )


def _secrets(layout: Layout) -> Sections:
    credentials = layout.credentials()
    return {
        "core": {"fernet_key": credentials.airflow_fernet_key},
        "database": {"sql_alchemy_conn": postgres_part.uri(layout, "airflow")},
        "api": {"secret_key": credentials.airflow_secret_key},
        "api_auth": {"jwt_secret": credentials.airflow_jwt_secret},
    }
