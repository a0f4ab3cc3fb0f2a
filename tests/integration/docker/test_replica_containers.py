"""How a replica's container is ended: one that answers is let finish, one that does not is not waited for.

A few lines of Python stand for vLLM, whose image and model would take minutes.
"""

import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import settings
from slipway_airflow.agent.replica_containers import LABEL, STOP_S, ReplicaContainers
from slipway_airflow.agent.vocabulary import REPLICA_PORT
from tests.contracts.backend_conformance import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.needs("docker")]

BASE_IMAGE = "python:3.11-slim-bookworm"
IGNORES = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('loading', flush=True); "
LOADS = IGNORES + "time.sleep(600)"
SERVES = f"""
import http.server, signal, sys, time
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
def finish(*_):
    time.sleep(1)
    open('/mnt/finished', 'w').write('finished')
    sys.exit(0)
signal.signal(signal.SIGTERM, finish)
server = http.server.HTTPServer(('', {REPLICA_PORT}), Healthy)
print('serving', flush=True)
server.serve_forever()
"""


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def project() -> Iterator[str]:
    """Also the name of the fleet's network; nothing is left of either."""
    name = f"slipway-test-{uuid.uuid4().hex[:8]}"
    docker("network", "create", "--internal", name)
    yield name
    label = f"label=com.docker.compose.project={name}"
    for container in docker("ps", "--all", "--quiet", "--filter", label).split():
        docker("rm", "--force", container)
    docker("network", "rm", name)


@pytest.fixture
def replicas(project: str, tmp_path: Path) -> ReplicaContainers:
    environ = {"SLIPWAY_DOCKER_FLEET_NETWORK": project, "SLIPWAY_DOCKER_VOLUME": project}
    return ReplicaContainers(
        settings.load({**environ, "SLIPWAY_HOME": str(tmp_path), "SLIPWAY_DOCKER_PROJECT": project})
    )


def start(project: str, code: str, folder: Path) -> str:
    """A replica's container as the agent names and labels it; returns the replica's name once `code` has spoken."""
    labels = (f"{LABEL}=replica", f"com.docker.compose.project={project}")
    container = docker(
        *("run", "--detach", "--init", "--network", project, "--name", f"{project}-replica"),
        *(part for label in labels for part in ("--label", label)),
        *("--volume", f"{folder}:/mnt", BASE_IMAGE, "python", "-c", code),
    )
    wait_for("it runs", lambda: bool(docker("logs", container)))
    return "replica"


def seconds_to_remove(replicas: ReplicaContainers, name: str) -> float:
    began = time.monotonic()
    replicas.remove(name)
    assert replicas.states() == {}
    return time.monotonic() - began


def test_a_replica_that_loads_is_killed_at_once(replicas: ReplicaContainers, project: str, tmp_path: Path) -> None:
    """It ignores SIGTERM then, and has nothing to finish: a release that is taken back must not wait for it."""
    took_s = seconds_to_remove(replicas, start(project, LOADS, tmp_path))
    assert took_s < STOP_S / 3


def test_a_replica_that_answers_may_finish(replicas: ReplicaContainers, project: str, tmp_path: Path) -> None:
    """It is asked, not killed."""
    replicas.remove(start(project, SERVES, tmp_path))
    assert (tmp_path / "finished").read_text() == "finished"
    assert replicas.states() == {}


def test_removing_what_is_gone_or_over_is_harmless(replicas: ReplicaContainers, project: str, tmp_path: Path) -> None:
    """A rollout repeats what it did before it was killed."""
    name = start(project, "print('over')", tmp_path)
    wait_for("it is over", lambda: replicas.states()[name].state == "EXITED")
    replicas.remove(name)
    replicas.remove(name)
    assert replicas.states() == {}
