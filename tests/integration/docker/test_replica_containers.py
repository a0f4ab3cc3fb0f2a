"""How a replica's container is ended and started anew: one that answers is let finish, others are not waited for.

A few lines of Python stand for vLLM, whose image and model would take minutes.
"""

import hashlib
import random
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from fleet_rig import DIGEST, MODEL, Rig

from pipeline import audit, settings
from pipeline.contracts.rollout import Rollout
from pipeline.fleet import replica_guard
from pipeline.fleet.doors import replica_door
from pipeline.fleet.replicas import replica_id
from pipeline.fleet.state import Deployment, ModelFleet, Replica, Served
from pipeline.fleet.vllm import ReplicaPlan
from pipeline.settings import ROOT
from slipway_airflow.agent.replica_containers import LABEL, STOP_S, ReplicaContainers
from slipway_airflow.agent.server import agent_app
from slipway_airflow.agent.vocabulary import REPLICA_PORT
from slipway_airflow.backends.process import ProcessBackend
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


SIGSTOP_IT = "import os; os.kill(int(open('/proc/1/task/1/children').read().split()[0]), 19)"
FREEZE = {"docker pause": ("pause", "{}"), "SIGSTOP": ("exec", "{}", "python", "-c", SIGSTOP_IT)}
"""How a container's program may come to stand still."""


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


def start(project: str, code: str, folder: Path, restart: str = "unless-stopped") -> str:
    """A replica's container as the agent names and labels it; returns the replica's name once `code` has spoken."""
    labels = (f"{LABEL}=replica", f"com.docker.compose.project={project}")
    container = docker(
        *("run", "--detach", "--init", "--restart", restart, "--network", project),
        *("--name", f"{project}-replica"),
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
    name = start(project, "print('over')", tmp_path, restart="no")
    wait_for("it is over", lambda: replicas.states()[name].state == "EXITED")
    replicas.remove(name)
    replicas.remove(name)
    assert replicas.states() == {}


@pytest.mark.parametrize("freeze", FREEZE.values(), ids=FREEZE.keys())
def test_a_replica_that_stands_still_is_started_anew_at_once(
    replicas: ReplicaContainers, project: str, tmp_path: Path, freeze: tuple[str, ...]
) -> None:
    """It can finish nothing, and nobody waits for it."""
    name = start(project, SERVES, tmp_path)
    before = replicas.states()[name].pid
    docker(*(part.format(f"{project}-{name}") for part in freeze))
    began = time.monotonic()
    replicas.restart(name, at_once=True)
    assert time.monotonic() - began < STOP_S / 3
    found = replicas.states()[name]
    assert (found.state, found.pid == before) == ("RUNNING", False)
    wait_for("it serves again", lambda: docker("logs", f"{project}-{name}").count("serving") == 2)
    assert not (tmp_path / "finished").exists()


@pytest.mark.parametrize("freeze", FREEZE.values(), ids=FREEZE.keys())
def test_a_replica_that_computes_is_told_from_one_that_stands_still(
    replicas: ReplicaContainers, project: str, tmp_path: Path, freeze: tuple[str, ...]
) -> None:
    """By its processor time; a machine that is busy makes it late, and that is no reason to kill it."""
    name = start(project, "print('busy', flush=True)\nwhile True: pass", tmp_path)
    before = replicas.activity(name)
    wait_for("it has used a processor", lambda: replicas.activity(name).used_s > before.used_s)
    docker(*(part.format(f"{project}-{name}") for part in freeze))
    then = replicas.activity(name)
    assert not then.waits
    assert replicas.activity(name) == then


def test_a_replica_that_is_asked_to_start_anew_may_finish(
    replicas: ReplicaContainers, project: str, tmp_path: Path
) -> None:
    """The engine starts it again; one that is gone is not made anew."""
    name = start(project, SERVES, tmp_path)
    before = replicas.states()[name].pid
    replicas.restart(name, at_once=False)
    wait_for("it serves again", lambda: docker("logs", f"{project}-{name}").count("serving") == 2)
    assert (tmp_path / "finished").read_text() == "finished"
    assert replicas.states()[name].pid != before
    replicas.remove(name)
    replicas.restart(name, at_once=True)
    assert replicas.states() == {}


def stand_in(rig: Rig, project: str, replica: Replica, image: str) -> None:
    """A replica's container that speaks as much of the protocol as the gateway needs."""
    variables = {
        "SLIPWAY_REPLICA_MODEL": MODEL,
        "SLIPWAY_REPLICA_VERSION": "1",
        "SLIPWAY_REPLICA_GENERATION": "1",
        "SLIPWAY_REPLICA_DOOR": hashlib.sha256(replica_door.secret(rig.layout).encode()).hexdigest(),
    }
    labels = (f"{LABEL}={replica.id}", f"com.docker.compose.project={project}")
    docker(
        *("run", "--detach", "--init", "--restart", "unless-stopped", "--network", project, "--ip", replica.host),
        *("--name", f"{project}-{replica.id}", "--volume", f"{ROOT / 'tests'}:/opt/slipway/tests:ro"),
        *(part for label in labels for part in ("--label", label)),
        *(part for name, value in variables.items() for part in ("--env", f"{name}={value}")),
        *(image, "python", "tests/integration/stand_in_replica.py", str(replica.port), "/tmp/manners.json", "0.0.0.0"),
    )


@contextmanager
def agent(replicas: ReplicaContainers, path: Path) -> Iterator[None]:
    """The agent on the socket `path`, until the block ends."""
    app = agent_app(replicas.settings, ProcessBackend(replicas.settings), replicas)
    server = uvicorn.Server(uvicorn.Config(app, uds=str(path), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for("the agent answers", lambda: server.started)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def rig(
    replicas: ReplicaContainers, project: str, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rig]:
    """A real gateway in front of two containers that are guarded through a real agent."""
    rig = Rig(tmp_path_factory.mktemp("guarded"))
    rig.up()
    try:
        places = enumerate(replicas.places(2, set()))
        found = tuple(
            Replica(id=replica_id(MODEL, "1", generation=1, index=index), host=host, port=port)
            for index, (host, port) in places
        )
        for replica in found:
            stand_in(rig, project, replica, images["control"])
        serve(rig, found)
        socket_path = rig.home_path / "agent.sock"
        with agent(replicas, socket_path):
            guard = replica_guard.program(rig.layout)
            told = {**guard.environment, "SLIPWAY_AGENT": str(socket_path)}
            rig.supervisor.put(guard.model_copy(update={"environment": told}))
            yield rig
    finally:
        rig.supervisor.stop()


def serve(rig: Rig, replicas: tuple[Replica, ...]) -> None:
    """As a rollout leaves it behind."""
    deployment = Deployment(
        version="1", generation=1, bundle_digest=DIGEST, replicas=replicas, num_wanted=2, ready=True, routed=True
    )
    served = Served(version="1", generation=1, deployment=1)
    model = ModelFleet(name=MODEL, generation=1, serving=served, weights={1: 100}, deployments=(deployment,))
    with rig.fleet.files.lock():
        rig.fleet.files.write(model)
    rig.gateway.apply()
    wait_for("both are well", lambda: list((rig.gateway.healthy() or {}).values()) == [True, True])


def test_the_guard_starts_a_container_anew_that_stands_still_and_no_client_notices(
    rig: Rig, replicas: ReplicaContainers, project: str
) -> None:
    """Put aside, restarted by the agent, used again: as with processes."""
    name = rig.state().deployments[0].replicas[0].id
    before = replicas.states()[name].pid

    def actions() -> list[str]:
        return [entry.action for entry in audit.read_entries(rig.layout) if entry.actor == replica_guard.PROGRAM]

    with rig.load(clients=2) as load:
        wait_for("answers", lambda: load.total > 20)
        docker("pause", f"{project}-{name}")
        began = time.monotonic()
        wait_for("it is used again", lambda: actions() == ["replica-aside", "replica-restarted", "replica-back"])
    print(f"a paused container was back after {time.monotonic() - began:.1f} s, {load.total} requests")
    assert load.failures == []
    assert replicas.states()[name].pid != before
    assert httpx.get(f"http://{rig.state().deployments[0].replicas[0].address}/health", trust_env=False).is_success


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
