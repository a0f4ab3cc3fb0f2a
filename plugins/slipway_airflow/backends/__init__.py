"""Where jobs run. `open_backend` gives the one that this installation uses."""

from pipeline.settings import Settings
from slipway_airflow.backends.base import Backend
from slipway_airflow.backends.process import ProcessBackend


def open_backend(settings: Settings) -> Backend:
    """The backend that `settings` asks for. What it needs is imported now, since Airflow loads this to read a DAG."""
    if settings.backend == "docker":
        from slipway_airflow.backends.docker import DockerBackend

        return DockerBackend(settings)
    if settings.backend == "agent":
        from slipway_airflow.backends.agent import AgentBackend

        return AgentBackend(settings)
    return ProcessBackend(settings)
