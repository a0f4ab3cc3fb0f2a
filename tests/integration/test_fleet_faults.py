"""kill -9 of a replica, of the gateway, and of the rollout itself, with clients asking all the while."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fleet_rig
import pytest
from fleet_rig import MODEL, Rig

from pipeline import audit
from pipeline.fleet import epochs
from pipeline.fleet.changes import ENDS
from pipeline.settings import ROOT

pytestmark = pytest.mark.integration


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A fleet that serves version 1 with two replicas."""
    rig = Rig(tmp_path)
    rig.up()
    rig.roll_out("1")
    yield rig
    rig.supervisor.stop()


def kill_envoy(rig: Rig) -> None:
    current = epochs.read_standing(rig.gateway.folder).current
    assert current is not None
    os.kill(current.process.pid, signal.SIGKILL)


def kill(rig: Rig, program: str) -> int:
    state = rig.supervisor.state(program)
    assert state is not None
    assert state.pid
    os.kill(state.pid, signal.SIGKILL)
    return state.pid


def test_a_killed_replica_fails_no_request_and_comes_back(rig: Rig) -> None:
    """Requests that had no answer yet are tried again on the other one."""
    replica = rig.state().deployments[0].replicas[0]
    with rig.load() as load:
        while load.total < 50:
            load.over.wait(0.01)
        old = kill(rig, replica.id)

        def back() -> bool:
            state = rig.supervisor.state(replica.id)
            return bool(state and state.pid not in (None, old) and (rig.gateway.healthy() or {}).get(replica.address))

        assert rig.gateway.wait(back, 60)
    assert load.failures == []


def test_a_killed_gateway_comes_back_with_the_same_weights(rig: Rig) -> None:
    """Clients see refused connections until it has been started again, and nothing else."""
    before = rig.state()
    with rig.load() as load:
        kill_envoy(rig)
        assert rig.gateway.wait(lambda: bool(load.failures), 30)
        failed = len(load.failures)
        asked = load.total

        def served_again() -> bool:
            return load.total > asked + failed + 20 and rig.gateway.healthy() is not None

        assert rig.gateway.wait(served_again, 60)
    assert {status for status, _ in load.answers} <= {0, 200, 503}
    assert rig.ask().status_code == 200
    assert rig.state() == before


def test_a_gateway_killed_during_a_rollout_is_not_the_canarys_fault(rig: Rig) -> None:
    """Probes that nobody took say nothing of the version on trial: it goes on when the gateway is back."""
    rig.registry.configure(step_s=4.0)
    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(rig.roll_out, "2")
        assert rig.gateway.wait(lambda: any(said.startswith("25 %") for said in rig.said), 60)
        kill_envoy(rig)
        outcomes = {result.phase: result.outcome for result in results.result()}
    assert outcomes["shift"] == "healthy", rig.said
    assert outcomes["promote"] == "done"
    assert rig.ask().headers["x-slipway-version"] == "2"


def test_a_rollout_killed_anywhere_is_finished_by_the_next_attempt(rig: Rig) -> None:
    """Two versions, each rollout killed five times at random moments: both converge, and no request fails."""
    pause = random.Random(7)
    script = str(Path(fleet_rig.__file__))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    kills = 0
    with rig.load(clients=2) as load:
        for version in ("2", "3"):
            rig.registry.set_alias(MODEL, "champion", version)
            command = [sys.executable, script, str(rig.home_path), f"to-{version}"]
            for _ in range(5):
                with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as attempt:
                    time.sleep(pause.uniform(0.8, 4.0))
                    kills += attempt.poll() is None
                    attempt.kill()
            rig.follow(f"to-{version}")
            assert rig.ask().headers["x-slipway-version"] == version
    assert kills >= 2
    assert load.failures == []
    assert rig.registry.alias(MODEL, "serving") == "3"
    assert [state.name for state in rig.supervisor.states() if state.name.startswith("replica-")] == [
        replica.id for deployment in rig.state().deployments for replica in deployment.replicas
    ]
    assert len(rig.state().deployments) == 1
    agrees_with_the_audit_log(rig)


def agrees_with_the_audit_log(rig: Rig) -> None:
    """Each rollout was planned once and ended once, and ended as the state says."""
    entries = list(audit.read_entries(rig.layout))
    assert audit.verify(rig.layout).whole
    for rollout in rig.state().history:
        told = [entry.action for entry in entries if entry.generation == rollout.generation]
        assert told.count("planned") == 1
        assert [action for action in told if action in ENDS.values()] == [ENDS[rollout.outcome]]
