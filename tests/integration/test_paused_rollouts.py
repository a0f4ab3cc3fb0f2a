"""A person holds a rollout where it is: a real gateway and supervisord, stand-in replicas, clients all the while."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import fleet_rig
import pytest
from fleet_rig import MODEL, Rig

from pipeline.fleet.operations import pause, resume
from pipeline.settings import ROOT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A fleet that serves version 1, and does so again after each test but the last."""
    rig = Rig(tmp_path_factory.mktemp("paused"))
    rig.up()
    rig.roll_out("1")
    yield rig
    rig.supervisor.stop()


@contextmanager
def attempt(rig: Rig, version: str) -> Iterator[Iterator[str]]:
    """A rollout in a process of its own, and what it says; it is killed with the block."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(fleet_rig.__file__)), str(rig.home_path), f"to-{version}"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield iter(process.stdout)
        finally:
            process.kill()


def until(lines: Iterator[str], beginning: str, times: int = 1) -> None:
    """Reads on until so many lines began so."""
    seen = 0
    for line in lines:
        seen += line.startswith(beginning)
        if seen == times:
            return
    raise AssertionError(f"it ended before it said {beginning!r} {times} times")


def test_a_paused_canary_that_turns_bad_is_taken_back(rig: Rig) -> None:
    """Nobody needs to be there."""
    with ThreadPoolExecutor(1) as pool, rig.load() as load:
        results = pool.submit(rig.roll_out, "12")
        assert rig.gateway.wait(lambda: any(said.startswith("25 %") for said in rig.said), 60)
        pause(rig.layout, MODEL, by="ann", reason="lunch")
        assert rig.gateway.wait(lambda: any(said.startswith("paused by ann") for said in rig.said), 60)
        rig.behave("12", error_rate=0.5)
        outcomes = {result.phase: result.outcome for result in results.result()}
    assert outcomes["shift"] == "unhealthy"
    assert load.failures == []
    assert rig.state().weights == {1: 100}
    assert rig.registry.alias(MODEL, "champion") == "1"
    assert rig.state().history[-1].paused is None


def test_a_rollout_that_is_paused_before_its_first_step_gives_the_canary_no_client(rig: Rig) -> None:
    """Its replicas start all the same, so that it can go on at once."""
    rig.registry.set_alias(MODEL, "champion", "13")
    rig.said.clear()
    generation = rig.phase("plan", request_id="two").generation
    pause(rig.layout, MODEL, by="ann", reason="not before noon")
    assert rig.phase("start_canary", request_id="two", generation=generation).outcome == "done"
    with ThreadPoolExecutor(1) as pool:
        shift = pool.submit(rig.phase, "shift", request_id="two", generation=generation)
        assert rig.gateway.wait(lambda: any(said.startswith("paused by ann") for said in rig.said), 60)
        assert rig.state().weights == {1: 100}
        resume(rig.layout, MODEL, by="ann", reason="noon")
        assert shift.result().outcome == "healthy"
    assert rig.state().weights == {1: 0, generation: 100}
    rig.phase("roll_back", request_id="two", generation=generation)


@pytest.mark.drill
def test_a_paused_rollout_keeps_its_weights_over_kills_and_goes_on_when_resumed(rig: Rig) -> None:
    """Each round of its watch would have been a step; and a repeated event changes nothing either."""
    rig.registry.set_alias(MODEL, "champion", "2")
    before = rig.state().generation
    with rig.load(clients=2) as load:
        with attempt(rig, "2") as lines:
            until(lines, "25 %")
            pause(rig.layout, MODEL, by="ann", reason="a customer complains")
            until(lines, "paused by ann", times=2)
            assert rig.state().weights == {1: 75, before + 1: 25}
        with attempt(rig, "2") as lines:
            until(lines, "paused by ann", times=2)
            assert rig.state().weights == {1: 75, before + 1: 25}
        with attempt(rig, "2-again") as lines:
            until(lines, "paused by ann", times=2)
            assert rig.state().generation == before + 2
            assert rig.state().weights == {1: 75, before + 1: 25}
            resume(rig.layout, MODEL, by="bob", reason="it was nothing")
            until(lines, "promote done")
    assert load.failures == []
    assert rig.ask().headers["x-slipway-version"] == "2"
    assert [(rollout.outcome, rollout.paused) for rollout in rig.state().history[-2:]] == [
        ("superseded", None),
        ("promoted", None),
    ]
