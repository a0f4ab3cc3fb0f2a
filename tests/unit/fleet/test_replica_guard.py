"""What the replica guard does with what it hears of replicas, and how it tells a busy process from one that hangs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipeline.errors import TransientError
from pipeline.fleet.probes import Answer
from pipeline.fleet.replica_findings import Look
from pipeline.fleet.replica_guard import MUTE_S, Guard, Target, key_of
from pipeline.fleet.replica_processes import LocalProcesses
from pipeline.fleet.state import ModelFleet, Replica
from pipeline.stack.layout import Layout
from tests import small_fleet

RUBBISH = Answer(failure="the answer is no chat completion", status=200)


def serving(*ports: int) -> ModelFleet:
    """A version whose replicas listen at `ports`."""
    return small_fleet.serving(*[Replica(id=f"replica-m-v1-g1-{index}", port=port) for index, port in enumerate(ports)])


@pytest.fixture
def guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guard:
    """Of replicas that all look well, and are not asked for tokens."""
    layout = Layout(tmp_path)
    layout.create()
    monkeypatch.setattr(Guard, "_look_at", lambda self, target: Look(time.monotonic(), "well"))
    monkeypatch.setattr("pipeline.fleet.replica_guard._ask", lambda target, door: Answer(status=200))
    return Guard(layout, processes_of(None))


def answered(guard: Guard, replica: Replica, answer: Answer) -> None:
    """What came back from the last question to it, which was asked a moment ago."""
    future: Future[Answer] = Future()
    future.set_result(answer)
    guard.asked[key_of(replica)] = (time.monotonic(), future)


@pytest.mark.parametrize(
    ("counts", "is_mute"),
    [((7, 7, 7), True), ((None, None, None), True), ((7, 7, 8), False), ((7, 8, 8), False)],
)
def test_an_engine_that_gives_nobody_a_token_is_mute_however_well_its_health(
    guard: Guard, monkeypatch: pytest.MonkeyPatch, counts: tuple[float | None, ...], is_mute: bool
) -> None:
    """Only where it owes an answer: an engine without work gives no tokens either."""
    deployment = serving(20_001).deployments[0]
    target = Target("m", deployment, deployment.replicas[0])
    said = iter(counts)
    monkeypatch.setattr("pipeline.fleet.autoscaling.scraping.tokens", lambda replica: next(said))
    owed: Future[Answer] = Future()
    guard.asked[target.key] = (0.0, owed)
    found = [guard._is_mute(target, now) for now in (5.0, 5.0 + MUTE_S / 2, 5.0 + MUTE_S)]
    assert found == [False, False, is_mute]
    owed.set_result(Answer(status=200))
    assert not guard._is_mute(target, 5.0 + 2 * MUTE_S)


@pytest.mark.parametrize("port", [20_009, 20_002])
def test_a_new_replica_does_not_answer_for_an_old_one_of_its_name(guard: Guard, port: int) -> None:
    """Also where it has the old one's address: the old one had left before."""
    guard.gateway.files.write(serving(20_001, 20_002))
    guard.look()
    (model,) = guard.gateway.models().values()
    answered(guard, model.deployments[0].replicas[1], RUBBISH)
    guard.gateway.files.write(serving(20_001))
    guard.look()
    guard.gateway.files.write(serving(20_001, port))
    guard.look()
    new = Replica(id="replica-m-v1-g1-1", port=port)
    assert [look.outcome for look in guard.histories[key_of(new)].looks] == ["well"]


def test_what_a_replica_answered_before_it_was_gone_says_nothing_of_what_came_back(guard: Guard) -> None:
    """It is another process."""
    model = serving(20_001)
    deployment = model.deployments[0]
    target = Target("m", deployment, deployment.replicas[0])
    answered(guard, target.replica, RUBBISH)
    assert guard._with_answer(target, Look(0.0, "away")).outcome == "away"
    assert guard._with_answer(target, Look(time.monotonic(), "well")).outcome == "well"


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ({}, True),
        ({"attempts": 2}, True),
        ({"code": 503}, False),
        ({"duration_us": None}, False),
        ({"upstream": "127.0.0.1:20002"}, False),
    ],
)
def test_an_answer_to_a_client_is_a_sign_of_life(guard: Guard, line: dict[str, Any], counts: bool) -> None:
    """Whole, and of the replica itself."""
    guard.gateway.files.write(serving(20_001))
    guard.look()
    entry = {"upstream": "127.0.0.1:20001", "code": 200, "attempts": 1, "duration_us": 5000}
    guard.gateway.access_log_path.write_text(json.dumps({**entry, **line}) + "\n")
    before = time.monotonic()
    guard.look()
    (history,) = guard.histories.values()
    assert (history.answered_at >= before) is counts


def test_a_replica_found_wrong_while_nobody_can_end_it_is_ended_later(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, however well it looks by then: it has answered with rubbish."""
    ended: list[tuple[str, bool]] = []

    def end(name: str, *, at_once: bool) -> None:
        if not can_end:
            raise TransientError("the agent does not answer")
        ended.append((name, at_once))

    monkeypatch.setattr(guard.gateway, "apply", lambda: None)
    monkeypatch.setattr(guard, "processes", SimpleNamespace(end=end))
    guard.gateway.files.write(serving(20_001, 20_002, 20_003))
    guard.look()
    (model,) = guard.gateway.models().values()
    can_end = False
    answered(guard, model.deployments[0].replicas[0], RUBBISH)
    guard.look()
    (model,) = guard.gateway.models().values()
    aside = model.deployments[0].replicas[0].aside
    assert aside is not None
    assert aside.kind == "wrong"
    can_end = True
    guard.look()
    guard.look()
    assert ended == [("replica-m-v1-g1-0", False)]


@pytest.fixture
def spinning() -> Iterator[subprocess.Popen[bytes]]:
    """A process that computes and answers nobody."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield process
    process.kill()
    process.wait()


def processes_of(pid: int | None) -> LocalProcesses:
    supervisor: Any = SimpleNamespace(state=lambda name: SimpleNamespace(pid=pid))
    return LocalProcesses(supervisor)


def test_a_process_that_computes_works_and_one_that_was_stopped_does_not(spinning: subprocess.Popen[bytes]) -> None:
    """By its processor time, which one that starves on a busy machine has some of, or waits for."""
    processes, process = processes_of(spinning.pid), psutil.Process(spinning.pid)
    for _ in range(3):
        used_s = process.cpu_times().user
        while process.cpu_times().user == used_s:
            time.sleep(0.01)
        assert processes.works("r")
    os.kill(spinning.pid, signal.SIGSTOP)
    while process.status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    processes.works("r")
    assert not processes.works("r")


def test_a_process_that_is_gone_or_that_nobody_keeps_does_not_work(spinning: subprocess.Popen[bytes]) -> None:
    """It is ended, if at all, for not answering."""
    spinning.kill()
    spinning.wait()
    assert not processes_of(spinning.pid).works("r")
    assert not processes_of(None).works("r")
