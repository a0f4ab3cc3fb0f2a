"""The MLflow server: runs, metrics, the model registry; artifacts go through it into `home/mlflow/artifacts`."""

import sys

from pipeline.stack import loopback, postgres_part
from pipeline.stack.layout import Layout
from pipeline.stack.supervisor import Program

NAME = "mlflow"
QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


def tracking_uri(layout: Layout) -> str:
    return layout.ports().url("mlflow")


def program(layout: Layout) -> Program:
    command = [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", "127.0.0.1", "--port", str(layout.ports().mlflow), "--workers", "1"),
        *("--backend-store-uri", postgres_part.uri(layout, "mlflow")),
        *("--artifacts-destination", f"file://{layout.mlflow_path}/artifacts", "--serve-artifacts"),
    ]
    return Program(
        name=NAME,
        command=tuple(command),
        environment=QUIET,
        directory=str(layout.mlflow_path),
        start_retries=10,
        priority=200,
        autostart=False,
        kill_remains=True,
    )


def is_healthy(layout: Layout) -> bool:
    return loopback.answers(f"{tracking_uri(layout)}/health")
