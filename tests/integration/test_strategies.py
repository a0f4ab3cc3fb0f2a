"""Where memory has no room for a second set, replicas are replaced one at a time: real gateway, stand-in replicas."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import fleet_rig
import pytest
from fleet_rig import MODEL, Rig

from pipeline.fleet.capacity import Memory
from pipeline.fleet.local_replicas import LocalReplicas
from pipeline.settings import ROOT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A fleet that serves a version with two replicas."""
    rig = Rig(tmp_path_factory.mktemp("strategies"))
    rig.up()
    rig.roll_out("1")
    rig.registry.configure(strategy="replace")
    yield rig
    rig.supervisor.stop()


def replicas(rig: Rig) -> list[str]:
    return [state.name for state in rig.supervisor.states() if state.name.startswith("replica-")]


class Census:
    """The most replicas that ran at once."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.most, self.over = rig, 0, threading.Event()
        self.thread = threading.Thread(target=self.count)

    def count(self) -> None:
        while not self.over.wait(0.05):
            self.most = max(self.most, len(replicas(self.rig)))

    def __enter__(self) -> "Census":
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        self.thread.join()


def test_replicas_are_replaced_one_at_a_time_without_a_failed_request(rig: Rig) -> None:
    """There are never more than before, one of the old ones stays until the new version is promoted, and in the end
    the new one has as many."""
    with Census(rig) as census, rig.load() as load:
        results = rig.roll_out("2")
    assert [result.outcome for result in results] == ["done", "done", "healthy", "done", "done"]
    assert load.failures == []
    assert load.count("1") > 0 < load.count("2")
    assert census.most == 2
    assert [name.split("-g")[0] for name in replicas(rig)] == ["replica-tiny-v2"] * 2
    assert [replica.use for found in rig.state().deployments for replica in found.replicas] == ["serving"] * 2


def test_a_bad_version_gives_the_places_back(rig: Rig) -> None:
    """Clients see none of its errors, and the old version has all its replicas again."""
    serving = rig.ask().headers["x-slipway-version"]
    rig.behave("13", error_rate=0.5)
    with Census(rig) as census, rig.load() as load:
        outcomes = {result.phase: result.outcome for result in rig.roll_out("13")}
    assert outcomes["shift"] == "unhealthy"
    assert load.failures == []
    assert census.most == 2
    assert [name.split("-g")[0] for name in replicas(rig)] == [f"replica-tiny-v{serving}"] * 2


def test_auto_goes_by_what_is_measured(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for a second set it is started beside the first, without it the other way; both say the figures."""
    rig.registry.configure(strategy="auto")
    taken = [LocalReplicas.memory(rig.fleet.replicas.host, replicas(rig))]  # type: ignore[arg-type]
    assert taken[0].replica_bytes > 10_000_000
    full = Memory(total_bytes=100, free_bytes=5, replica_bytes=10)

    def none_free(_host: LocalReplicas, _names: Sequence[str]) -> Memory:
        return full

    monkeypatch.setattr(LocalReplicas, "memory", none_free)
    rig.registry.set_alias(MODEL, "champion", "14")
    generation = rig.phase("plan", request_id="14").generation
    assert rig.phase("start_canary", request_id="14", generation=generation).outcome == "done"
    assert len(replicas(rig)) == 2
    assert any(said.startswith("strategy replace: 0.0 of 0.0 GB are free") for said in rig.said)
    rig.phase("roll_back", request_id="14", generation=generation)
    assert len(rig.state().deployments[0].serving) == 2


@pytest.mark.drill
def test_a_replacement_killed_anywhere_is_finished_by_the_next_attempt(rig: Rig) -> None:
    """Four replicas, each rollout killed six times at random moments: no request fails, and all are replaced."""
    pause = random.Random(11)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    rig.registry.configure(strategy="surge", replicas=4)
    rig.roll_out("20")
    rig.registry.configure(strategy="replace")
    with Census(rig) as census, rig.load(clients=2) as load:
        for version in ("21", "22"):
            rig.registry.set_alias(MODEL, "champion", version)
            command = [sys.executable, str(Path(fleet_rig.__file__)), str(rig.home_path), f"to-{version}"]
            for _ in range(6):
                with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as attempt:
                    time.sleep(pause.uniform(0.8, 6.0))
                    attempt.kill()
            rig.follow(f"to-{version}")
            assert rig.ask().headers["x-slipway-version"] == version
            assert [name.split("-g")[0] for name in replicas(rig)] == [f"replica-tiny-v{version}"] * 4
    assert load.failures == []
    assert census.most == 4
