"""Containers of one home: how they are named and labelled, and how what nobody wants any more is found and removed.

Docker is the truth about what runs; the labels say whose it is. Docker's library is imported when it is needed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.contracts.base import sha256_hex
from pipeline.errors import SlipwayError, SpecError, TransientError
from pipeline.settings import Settings

HOME_LABEL, JOB_LABEL, RANK_LABEL = "slipway.home", "slipway.job", "slipway.rank"
STOP_S = 15
"""What a step gets to end by itself before it is killed."""
BRIDGE = "bridge"
"""The network that every Docker engine has."""
MAX_NAME_CHARS = 63
"""Of a DNS label: the nodes of a job find each other by their containers' names."""


def connect() -> Any:
    """The engine that DOCKER_HOST names, or this machine's.

    Raises:
        TransientError: it does not answer.
    """
    import docker

    with engine_errors("reach the Docker engine"):
        return docker.from_env(timeout=120)


@contextmanager
def engine_errors(what: str) -> Iterator[None]:
    """The engine's refusals as errors of ours: what is missing or wrong will not pass, the rest may.

    Raises:
        SpecError: an image, a network or a volume that is not there, or a request that makes no sense.
        TransientError: anything else.
    """
    from docker.errors import APIError, DockerException, NotFound
    from requests.exceptions import RequestException

    try:
        yield
    except NotFound as error:
        raise SpecError(
            f"cannot {what}: {error.explanation}; `make images` makes images, `docker network create` and"
            " `docker volume create` the rest"
        ) from error
    except APIError as error:
        kind = SpecError if error.status_code == 400 else TransientError
        raise kind(f"cannot {what}: {error.explanation or error}") from error
    except (DockerException, RequestException) as error:
        raise TransientError(f"cannot {what}: {error}; see that Docker runs (`docker info`)") from error


def home_label(settings: Settings) -> str:
    """What tells the containers of one home from those of another on the same engine. In a volume, every home has the
    same path."""
    return sha256_hex(f"{settings.docker_volume or ''}:{settings.home_path}".encode())[:20]


def job_name(settings: Settings, job_id: str) -> str:
    """What a job's network is called, and its containers but for their rank.

    Its id comes from what it makes, so another home of the same engine may have the same job: its name is another.
    """
    name = f"slipway-{home_label(settings)[:8]}-{job_id}"
    room = MAX_NAME_CHARS - len("-63")
    return name if len(name) <= room else f"{name[: room - 9]}-{sha256_hex(job_id.encode())[:8]}"


def node_name(settings: Settings, job_id: str, rank: int) -> str:
    """What the container of one node is called, and the host that it is to the other nodes."""
    return f"{job_name(settings, job_id)}-{rank}"


def of_home(settings: Settings) -> list[str]:
    return [f"{HOME_LABEL}={home_label(settings)}", JOB_LABEL]


def remove_orphans(engine: Any, settings: Settings) -> int:
    """Removes the containers and networks of jobs that are over, or whose record is gone; how many.

    Between a job's end and the first look at it, its containers are its record: those stay.
    """
    jobs_path = settings.home_path / "jobs"

    def is_orphan(job_id: str) -> bool:
        folder = jobs_path / job_id
        return not (folder / "request.json").exists() or (folder / "exit_code").exists()

    return _remove(engine, settings, is_orphan, busy_is_fine=True)


def remove_all(engine: Any, settings: Settings) -> int:
    """Ends and removes every container of the home's jobs, and their networks; how many containers."""
    with engine_errors("list the containers of this home"):
        found = engine.containers.list(filters={"label": of_home(settings)})
    for container in found:
        with gone_is_fine(), engine_errors(f"end container {container.name}"):
            container.kill("SIGTERM")
    for container in found:
        with gone_is_fine(), engine_errors(f"end container {container.name}"):
            container.stop(timeout=STOP_S)
    return _remove(engine, settings, lambda _job_id: True)


def remove_job(engine: Any, settings: Settings, job_id: str) -> None:
    """Ends at once and removes what there is of one job."""
    _remove(engine, settings, lambda found: found == job_id)


def bridge_address(engine: Any) -> str:
    """This machine's address as containers see it.

    Raises:
        SpecError: the engine's own network has none.
    """
    with engine_errors("look at Docker's own network"):
        config = engine.networks.get(BRIDGE).attrs["IPAM"]["Config"] or [{}]
    gateway = config[0].get("Gateway")
    if not gateway:
        raise SpecError("Docker's network `bridge` has no gateway address; set `bip` in the engine's daemon.json")
    return str(gateway)


def _remove(engine: Any, settings: Settings, unwanted: Callable[[str], bool], *, busy_is_fine: bool = False) -> int:
    """Removes the home's containers and networks whose job's id is `unwanted`; how many containers.

    Args:
        busy_is_fine: a network whose last container somebody else is just removing is left for another time.
    """
    filters = {"label": of_home(settings)}
    removed = 0
    with engine_errors("list the containers of this home"):
        containers = engine.api.containers(all=True, filters=filters)
        networks = engine.api.networks(filters=filters)
    for found in containers:
        if unwanted(found["Labels"][JOB_LABEL]):
            with gone_is_fine(), engine_errors(f"remove container {found['Names'][0]}"):
                engine.api.remove_container(found["Id"], force=True, v=True)
                removed += 1
    for found in networks:
        if unwanted(found["Labels"][JOB_LABEL]):
            with gone_is_fine(*([403] if busy_is_fine else [])), engine_errors(f"remove network {found['Name']}"):
                engine.api.remove_network(found["Id"])
    return removed


@contextmanager
def gone_is_fine(*more: int) -> Iterator[None]:
    """Somebody else has removed it, is removing it, or it has ended.

    Args:
        more: other answers of the engine that are fine, too.
    """
    try:
        yield
    except SlipwayError as error:
        if getattr(error.__cause__, "status_code", None) not in (404, 409, *more):
            raise


def compose_labels(project: str, service: str) -> dict[str, str]:
    """By these docker compose counts a container among its project's own: it is no orphan."""
    return {
        "com.docker.compose.project": project,
        "com.docker.compose.service": service,
        "com.docker.compose.oneoff": "False",
        "com.docker.compose.config-hash": service,
    }
