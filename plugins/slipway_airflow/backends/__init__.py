"""Where jobs run. `open_backend` gives the one that this installation uses."""

from pipeline.settings import Settings
from slipway_airflow.backends.base import Backend
from slipway_airflow.backends.process import ProcessBackend


def open_backend(settings: Settings) -> Backend:
    """The backend that `settings` asks for: detached local processes."""
    return ProcessBackend(settings)
