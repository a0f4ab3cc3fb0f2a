"""Faults, and people, in the middle of a rollout, with OpenAI's own client asking all the while.

Each scene begins when version 2 has a quarter of the traffic. Afterwards everything that says what is served agrees.
Every scene prints a line of JSON with what the clients saw; docs/operations.md has them in a table.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from fleet_agreement import disagreements
from fleet_rig import MODEL, Rig
from openai_load import Running, openai_clients

from pipeline.contracts.specs import RolloutResult
from pipeline.errors import SlipwayError
from pipeline.fleet.envoy_keeper import envoys
from pipeline.fleet.operations import rollback
from pipeline.fleet.state import Replica

pytestmark = pytest.mark.integration

MANNERS: dict[str, object] = {"chunks": 8, "chunk_s": 0.01}


@dataclass
class Scene:
    """A fleet that serves version 1 while version 2 is on trial, and clients."""

    rig: Rig
    clients: Running
    rollout: Future[list[RolloutResult]]
    pool: ThreadPoolExecutor

    def replicas(self, version: str) -> tuple[Replica, ...]:
        return next(found for found in self.rig.state().deployments if found.version == version).replicas

    def signal(self, program: str, what: signal.Signals) -> None:
        state = self.rig.supervisor.state(program)
        assert state is not None
        assert state.pid
        os.kill(state.pid, what)

    def outcomes(self) -> dict[str, str]:
        """How the rollout's phases ended."""
        return {result.phase: result.outcome for result in self.rollout.result(120)}

    def wait(self, condition: Callable[[], bool], timeout_s: float = 60) -> None:
        assert self.rig.gateway.wait(condition, timeout_s)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """In mid-rollout. The clients end, and all must agree, when the test has passed."""
    rig = Rig(tmp_path)
    for version in ("1", "2", "3"):
        rig.behave(version, **MANNERS)
    rig.up()
    rig.roll_out("1")
    rig.registry.configure(step_s=3.0, keep_warm_s=0.0)
    try:
        with (
            ThreadPoolExecutor(3) as pool,
            openai_clients(rig.gateway.url, rig.key, MODEL, tmp_path / "clients", clients=4) as clients,
        ):
            assert rig.gateway.wait(lambda: clients.report().requests > 20, 60)
            rollout = pool.submit(rig.roll_out, "2")
            assert rig.gateway.wait(lambda: clients.report().versions["2"] > 5, 60)
            yield Scene(rig, clients, rollout, pool)
            assert rig.gateway.wait(lambda: disagreements(rig) == [], 60), disagreements(rig)
    finally:
        rig.supervisor.stop()


def told(scene: Scene, name: str, began: float) -> None:
    """A line for the documents."""
    report = scene.clients.report()
    line = {
        "scene": name,
        "requests": report.requests,
        "failed": report.failed,
        "broken_streams": report.broken_streams,
        "last_failure_after_s": round(report.last_failure_at - began, 1) if report.last_failure_at else None,
    }
    print(json.dumps(line), flush=True)


@pytest.mark.drill
@pytest.mark.parametrize("version", ["1", "2"], ids=["that serves", "on trial"])
def test_a_killed_replica_of_the_version(scene: Scene, version: str) -> None:
    """Nothing that had not begun to be answered is lost; a version on trial may be taken back for it."""
    began = time.time()
    scene.signal(scene.replicas(version)[0].id, signal.SIGKILL)
    outcomes = scene.outcomes()
    report = scene.clients.report()
    told(scene, f"kill -9 of a replica of version {version}", began)
    assert outcomes["retire"] == "done", scene.rig.said
    assert version == "2" or outcomes["promote"] == "done", scene.rig.said
    # A stream that had begun ends with its replica; nothing else may fail.
    assert report.failed == report.broken_streams <= 4, report.failures


def test_a_dead_canary_is_taken_back(scene: Scene) -> None:
    """Both of its replicas die again and again: the clients are answered by the version that serves."""
    began = time.time()
    while scene.rig.state().weights.get(2) and not scene.rollout.done():
        for replica in scene.replicas("2"):
            state = scene.rig.supervisor.state(replica.id)
            if state and state.pid:
                os.kill(state.pid, signal.SIGKILL)
        time.sleep(0.2)
    outcomes = scene.outcomes()
    told(scene, "a dead canary", began)
    assert outcomes["shift"] == "unhealthy", scene.rig.said
    assert scene.clients.report().failed == scene.clients.report().broken_streams


@pytest.mark.drill
def test_the_alias_is_moved_on(scene: Scene) -> None:
    """The newer rollout takes over; the version that nobody wants any more is gone."""
    began = time.time()
    newer = scene.pool.submit(scene.rig.roll_out, "3")
    assert scene.outcomes()["shift"] == "superseded"
    assert newer.result(120)[-2].outcome == "done"
    told(scene, "the alias is moved on", began)
    assert scene.clients.report().failures == []


def test_the_alias_is_moved_back(scene: Scene) -> None:
    """The version that serves is wanted again: the one on trial is never promoted."""
    began = time.time()
    back = scene.pool.submit(scene.rig.roll_out, "1")
    assert scene.outcomes()["shift"] == "superseded"
    back.result(120)
    told(scene, "the alias is moved back", began)
    assert scene.clients.report().failures == []
    state = scene.rig.state()
    assert state.serving is not None
    assert state.serving.version == "1"


@pytest.mark.drill
def test_two_people_at_once(scene: Scene) -> None:
    """One takes the version back while another promotes a third: what the alias says in the end is what is served."""
    began = time.time()

    def take_back() -> str:
        try:
            return rollback(scene.rig.layout, MODEL, scene.rig.registry).version
        except SlipwayError as error:
            return str(error)

    back, newer = scene.pool.submit(take_back), scene.pool.submit(scene.rig.roll_out, "3")
    back.result(60)
    newer.result(120)
    scene.outcomes()
    # As the sensor would for whoever moved the alias last.
    scene.rig.follow("whatever the alias says now")
    told(scene, "two people at once", began)
    assert scene.clients.report().failures == []


@pytest.mark.drill
@pytest.mark.parametrize("version", ["1", "2"], ids=["that serves", "on trial"])
def test_a_stopped_replica_of_the_version(scene: Scene, version: str) -> None:
    """SIGSTOP: it hangs with its connections open. Its requests go elsewhere, and it comes back when it goes on."""
    began = time.time()
    replica = scene.replicas(version)[0]
    scene.signal(replica.id, signal.SIGSTOP)
    try:
        scene.wait(lambda: not (scene.rig.gateway.healthy() or {}).get(replica.address, True))
        aside_s = time.time() - began
    finally:
        if scene.rig.supervisor.state(replica.id):
            scene.signal(replica.id, signal.SIGCONT)
    scene.outcomes()
    told(scene, f"SIGSTOP of a replica of version {version}, aside after {aside_s:.1f} s", began)
    report = scene.clients.report()
    assert report.failed == report.broken_streams <= 4, report.failures


@pytest.mark.drill
def test_a_killed_keeper_of_the_gateway(scene: Scene) -> None:
    """Envoy goes on, and the next keeper takes it up."""
    began = time.time()
    scene.signal("gateway", signal.SIGKILL)
    outcomes = scene.outcomes()
    told(scene, "kill -9 of the gateway's keeper", began)
    assert outcomes["promote"] == "done", scene.rig.said
    assert scene.clients.report().failures == []


@pytest.mark.drill
def test_a_killed_gateway(scene: Scene) -> None:
    """The clients see refused connections until the next Envoy is up, and nothing afterwards."""
    began = time.time()
    [envoy] = envoys(scene.rig.gateway.folder)
    os.kill(envoy.pid, signal.SIGKILL)
    outcomes = scene.outcomes()
    told(scene, "kill -9 of Envoy", began)
    assert outcomes["promote"] == "done", scene.rig.said
    last_failure_at = scene.clients.report().last_failure_at
    assert last_failure_at
    assert last_failure_at - began < 15
