"""Where this home's steps run: as processes of the machine, or as containers. Keeps it in `home/backend.json`.

The stack itself is processes on loopback either way. Containers reach its MLflow through the gateway, which listens
for them at the machine's address in Docker's own network.
"""

from contextlib import suppress
from pathlib import Path
from typing import Literal

from pipeline import containers
from pipeline.contracts.base import Contract
from pipeline.errors import SpecError, TransientError
from pipeline.images import ENVIRONMENTS, image_name
from pipeline.settings import Settings
from pipeline.stack.layout import Layout, read_json, write_json


class JobsPlace(Contract):
    """Where steps run."""

    backend: Literal["process", "docker"] = "process"
    bridge_address: str | None = None
    """This machine's, as containers see it."""


def place_of(layout: Layout) -> JobsPlace:
    """As it was chosen last."""
    path = _path(layout)
    return read_json(path, JobsPlace) if path.exists() else JobsPlace()


def choose(layout: Layout, settings: Settings, wanted: str | None = None) -> JobsPlace:
    """Decides where steps run and keeps it: as `wanted`, else as the environment says, else as before.

    Raises:
        SpecError: the local stack has no such backend, or an image is missing.
        TransientError: Docker does not answer.
    """
    said = settings.backend if "backend" in settings.model_fields_set else None
    backend = wanted or said or place_of(layout).backend
    if backend == "docker":
        place = JobsPlace(backend="docker", bridge_address=_prepare_engine(settings))
    elif backend == "process":
        # A process would start a job anew that a container still runs. An engine that does not answer runs none.
        with suppress(TransientError):
            end_containers(layout, settings)
        place = JobsPlace()
    else:
        raise SpecError(f"the local stack has no backend {backend!r}, expected process or docker")
    if place != place_of(layout):
        write_json(_path(layout), place)
    return place


def variables(layout: Layout) -> dict[str, str]:
    """What Airflow is told."""
    place = place_of(layout)
    uri = {"SLIPWAY_JOBS_TRACKING_URI": f"http://{place.bridge_address}:{layout.ports().mlflow}"}
    return {"SLIPWAY_BACKEND": place.backend, **(uri if place.bridge_address else {})}


def end_containers(layout: Layout, settings: Settings) -> int:
    """Ends the containers of this home's jobs; how many."""
    if place_of(layout).backend != "docker":
        return 0
    return containers.remove_all(containers.connect(), settings)


def missing_images(settings: Settings) -> list[str]:
    """The images that steps need and the engine does not have."""
    engine = containers.connect()
    with containers.engine_errors("list the images"):
        known = {tag for image in engine.images.list() for tag in image.tags}
    return [name for name in (image_name(environment, settings) for environment in ENVIRONMENTS) if name not in known]


def _prepare_engine(settings: Settings) -> str:
    if missing := missing_images(settings):
        raise SpecError(f"steps as containers need the images {', '.join(missing)}: run `make images`")
    engine = containers.connect()
    containers.remove_orphans(engine, settings)
    return containers.bridge_address(engine)


def _path(layout: Layout) -> Path:
    return layout.home_path / "backend.json"
