"""Replicas that stand still, crash, lie, talk rubbish or are slow: what clients see of it, and how soon it is over."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fleet_rig import MODEL, Load, Rig

from pipeline import audit
from pipeline.fleet.replica_guard import PROGRAM
from pipeline.fleet.state import Replica

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Two guarded replicas of version 1."""
    rig = Rig(tmp_path_factory.mktemp("bad"))
    rig.up()
    rig.roll_out("1")
    rig.guard()
    yield rig
    rig.supervisor.stop()


def replicas(rig: Rig) -> tuple[Replica, ...]:
    return rig.state().deployments[0].replicas


def aside(rig: Rig, replica: Replica) -> str | None:
    """Why it is put aside."""
    found = next(known for known in replicas(rig) if known.id == replica.id)
    return found.aside.kind if found.aside else None


def pid_of(rig: Rig, replica: Replica) -> int:
    state = rig.supervisor.state(replica.id)
    return (state.pid if state else 0) or 0


def seconds_until(rig: Rig, condition: Callable[[], Any], timeout_s: float = 90) -> float:
    began = time.monotonic()
    assert rig.gateway.wait(lambda: bool(condition()), timeout_s)
    return time.monotonic() - began


def warm(load: Load) -> None:
    while load.total < 30:
        load.over.wait(0.01)


@pytest.mark.drill
def test_a_replica_that_stands_still_fails_no_request_and_is_started_anew(rig: Rig) -> None:
    """What it had taken is tried again on the other one once it is killed."""
    bad = replicas(rig)[0]
    with rig.load(clients=4) as load:
        warm(load)
        pid = pid_of(rig, bad)
        os.kill(pid, signal.SIGSTOP)
        away_s = seconds_until(rig, lambda: aside(rig, bad) == "hung")
        back_s = seconds_until(rig, lambda: aside(rig, bad) is None and pid_of(rig, bad) not in (0, pid))
    print(f"hung: aside after {away_s:.1f} s, back after {back_s:.1f} s more, {load.total} requests")
    assert load.failures == []

    def actions() -> list[str]:
        return [entry.action for entry in audit.read_entries(rig.layout) if entry.actor == PROGRAM]

    seconds_until(rig, lambda: actions() == ["replica-aside", "replica-restarted", "replica-back"])


@pytest.mark.drill
def test_a_replica_whose_engine_stands_still_behind_a_good_health_is_started_anew(rig: Rig) -> None:
    """What it had taken is tried again on the other one."""
    bad = replicas(rig)[0]
    pid = pid_of(rig, bad)
    with rig.load(clients=4) as load:
        warm(load)
        rig.misbehave(bad, delay_s=600.0)
        away_s = seconds_until(rig, lambda: aside(rig, bad) == "hung")
        rig.misbehave(bad)
        back_s = seconds_until(rig, lambda: aside(rig, bad) is None and pid_of(rig, bad) not in (0, pid), 120)
    print(f"mute: aside after {away_s:.1f} s, back after {back_s:.1f} s more, {load.total} requests")
    assert load.failures == []


@pytest.mark.drill
def test_a_replica_that_is_only_busy_is_put_aside_and_left_alive(rig: Rig) -> None:
    """For longer than one that does nothing is left alive; what it has begun is not lost."""
    bad = replicas(rig)[1]
    pid = pid_of(rig, bad)
    rig.misbehave(bad, spin_s=20.0)
    away_s = seconds_until(rig, lambda: aside(rig, bad) == "hung")
    rig.misbehave(bad)
    back_s = seconds_until(rig, lambda: aside(rig, bad) is None)
    print(f"busy: aside after {away_s:.1f} s, back after {back_s:.1f} s more")
    assert pid_of(rig, bad) == pid


def test_a_replica_that_lies_reaches_no_client(rig: Rig) -> None:
    """An answer of a version that is not served is no answer; who gave it is put aside until it says the truth."""
    bad = replicas(rig)[1]
    with rig.load(clients=4) as load:
        warm(load)
        rig.misbehave(bad, says="9")
        away_s = seconds_until(rig, lambda: aside(rig, bad) == "wrong")
        rig.misbehave(bad)
        back_s = seconds_until(rig, lambda: aside(rig, bad) is None)
    print(f"lying: aside after {away_s:.1f} s, back after {back_s:.1f} s more, {load.total} requests")
    assert load.failures == []
    assert {version for _, version in load.answers} == {"1"}


@pytest.mark.drill
def test_a_replica_that_crashes_in_a_loop_is_left_alone_for_a_while(rig: Rig) -> None:
    """Each crash costs no request, and after some it is no longer trusted as soon as it is up."""
    bad = replicas(rig)[0]
    began = time.monotonic()
    with rig.load(clients=4) as load:
        warm(load)
        while aside(rig, bad) is None and time.monotonic() - began < 60:
            pid = pid_of(rig, bad)
            if pid and (rig.gateway.healthy() or {}).get(bad.address):
                os.kill(pid, signal.SIGKILL)
            load.over.wait(0.3)
        away_s = time.monotonic() - began
        assert aside(rig, bad) == "crashing"
        back_s = seconds_until(rig, lambda: aside(rig, bad) is None, 120)
    print(f"crashing: aside after {away_s:.1f} s, back after {back_s:.1f} s more, {load.total} requests")
    assert load.failures == []


@pytest.mark.drill
def test_a_replica_that_talks_rubbish_is_put_aside(rig: Rig) -> None:
    """Envoy cannot see it, since it is JSON; one token asked for each few seconds does."""
    bad = replicas(rig)[0]
    rig.misbehave(bad, rubbish=True)
    away_s = seconds_until(rig, lambda: aside(rig, bad) == "wrong")
    answers = [rig.ask().json() for _ in range(20)]
    rig.misbehave(bad)
    seconds_until(rig, lambda: aside(rig, bad) is None)
    print(f"rubbish: aside after {away_s:.1f} s")
    assert all(answer.get("model") == MODEL for answer in answers)


@pytest.mark.drill
def test_a_replica_that_is_much_slower_than_the_others_is_put_aside(rig: Rig) -> None:
    """By what clients waited."""
    bad = replicas(rig)[1]
    with rig.load(clients=6) as load:
        warm(load)
        rig.misbehave(bad, delay_s=1.0)
        away_s = seconds_until(rig, lambda: aside(rig, bad) == "slow")
        rig.misbehave(bad)
    print(f"slow: aside after {away_s:.1f} s, {load.total} requests")
    assert load.failures == []


@pytest.mark.drill
def test_a_replica_whose_health_is_fine_and_whose_answers_fail_is_ejected(rig: Rig) -> None:
    """By Envoy alone; every request is tried again on the other one."""
    seconds_until(rig, lambda: all(replica.aside is None for replica in replicas(rig)), 120)
    bad = replicas(rig)[0]
    with rig.load(clients=4) as load:
        warm(load)
        rig.misbehave(bad, error_rate=1.0)
        away_s = seconds_until(rig, lambda: not (rig.gateway.healthy() or {bad.address: True})[bad.address])
        rig.misbehave(bad)
        seconds_until(rig, lambda: (rig.gateway.healthy() or {})[bad.address])
    print(f"failing: ejected after {away_s:.1f} s, {load.total} requests")
    assert load.failures == []
