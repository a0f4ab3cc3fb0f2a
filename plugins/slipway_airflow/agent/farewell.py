"""What the agent does when it is told to end: nothing, unless the whole stack goes.

`docker compose down` removes its own services' containers and no others; replicas and steps would go on, and hold the
networks and volumes. It removes who depends on a service before the service itself, so an agent that is told to end
and finds the scheduler's container gone, not merely stopped, knows that it is `down`. After a restart, a stop, a kill
or an upgrade of services there is one.
"""

from typing import Any

from pipeline import containers
from pipeline.containers import engine_errors, gone_is_fine
from pipeline.settings import Settings
from slipway_airflow.agent.replica_containers import LABEL

DEPENDENT = "airflow-scheduler"
"""A service that depends on the agent's in docker-compose.yml."""


def end_with_the_stack(settings: Settings) -> int:
    """Ends the replicas and steps of a stack that is being removed; how many containers.

    Which replicas should run stays written down: the next `up` brings them back, if the volumes are still there.
    """
    engine = containers.connect()
    if not _is_going(engine, settings):
        return 0
    replicas = _of_project(engine, settings, LABEL)
    for replica in replicas:
        with gone_is_fine(), engine_errors(f"remove {replica.name}"):
            replica.remove(force=True)
    return len(replicas) + containers.remove_all(engine, settings)


def _is_going(engine: Any, settings: Settings) -> bool:
    return not _of_project(engine, settings, f"com.docker.compose.service={DEPENDENT}")


def _of_project(engine: Any, settings: Settings, label: str) -> list[Any]:
    labels = [f"com.docker.compose.project={settings.docker_project}", label]
    with engine_errors(f"list the containers of {settings.docker_project}"):
        found: list[Any] = engine.containers.list(all=True, filters={"label": labels}, ignore_removed=True)
    return found
