"""How a replica's container is ended: one that answers is let finish, one that does not is not waited for.

A few lines of Python stand for vLLM, whose image and model would take minutes.
"""

import random
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.contracts.rollout import Rollout
from pipeline.fleet.state import Replica
from pipeline.fleet.vllm import ReplicaPlan
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
    # Fixed addresses need a subnet of one's own.
    subnet = f"10.214.{random.randrange(256)}.0"
    docker("network", "create", "--internal", "--subnet", f"{subnet}/24", "--ip-range", f"{subnet}/26", name)
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


def test_a_replica_whose_container_is_gone_is_started_again_until_it_is_removed(
    replicas: ReplicaContainers, project: str, images: dict[str, str], tmp_path: Path
) -> None:
    """As after `docker compose down` and `up`: what should run is written down."""
    assert images
    docker("volume", "create", project)
    docker("run", "--rm", "--volume", f"{project}:/mnt", BASE_IMAGE, "mkdir", "/mnt/cache")
    plan = ReplicaPlan(
        replica=Replica(id="replica-tiny-v1-g1-0", host=replicas.places(1, set())[0][0], port=REPLICA_PORT),
        model="tiny",
        version="1",
        generation=1,
        bundle_path=tmp_path / "cache" / "no-bundle",
        settings=Rollout(),
        core=0,
    )
    try:
        replicas.put(plan)
        docker("rm", "--force", f"{project}-{plan.replica.id}")
        assert replicas.states() == {}
        assert ReplicaContainers(replicas.settings).restore() == []
        assert list(replicas.states()) == [plan.replica.id]
        replicas.remove(plan.replica.id)
        assert ReplicaContainers(replicas.settings).restore() == []
        assert replicas.states() == {}
    finally:
        replicas.remove(plan.replica.id)
        docker("volume", "rm", project)


def test_a_plan_that_no_rollout_can_have_written_is_not_restored(replicas: ReplicaContainers) -> None:
    """Rollouts may write into the folder; the message names the file."""
    replicas.plans_path.mkdir(parents=True)
    (replicas.plans_path / "replica-tiny-v1-g1-0.json").write_text("{}")
    failures = replicas.restore()
    assert len(failures) == 1
    assert failures[0].startswith("replica-tiny-v1-g1-0 is not there again: ")
