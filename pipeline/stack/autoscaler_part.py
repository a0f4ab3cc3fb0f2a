"""The autoscaler of the local stack: adds and removes replicas as the load asks for them."""

import sys

from pipeline.settings import ROOT, Settings
from pipeline.stack import mlflow_part
from pipeline.stack.layout import Layout
from pipeline.stack.supervisor import Program

NAME = "autoscaler"


def program(layout: Layout, settings: Settings) -> Program:
    """For the supervisor. It waits for MLflow and the gateway by itself, and stops before the replicas do."""
    return Program(
        name=NAME,
        command=(sys.executable, "-m", "pipeline.fleet.autoscaling"),
        environment={
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "SLIPWAY_HOME": str(layout.home_path),
            "SLIPWAY_VENVS": str(settings.venvs_path),
            "SLIPWAY_STORE": settings.store_uri,
            **({"SLIPWAY_S3_ENDPOINT": settings.s3_endpoint} if settings.s3_endpoint else {}),
            "MLFLOW_TRACKING_URI": mlflow_part.tracking_uri(layout),
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        },
        directory=str(layout.fleet_path),
        start_retries=10,
        priority=600,
    )
