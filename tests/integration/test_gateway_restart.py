"""The gateway is replaced while clients use it, and what keeps it running may be killed at any moment."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fleet_rig import MODEL, Rig

from pipeline.errors import TransientError
from pipeline.fleet import envoy_keeper, epochs, gateway

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A gateway with one replica of version 1."""
    rig = Rig(tmp_path_factory.mktemp("restart"))
    rig.up()
    rig.registry.configure(replicas=1, step_s=1.0, min_requests=5)
    rig.roll_out("1")
    yield rig
    rig.supervisor.stop()
    assert envoy_keeper.envoys(rig.gateway.folder) == []


def standing(rig: Rig) -> epochs.Standing:
    return epochs.read_standing(rig.gateway.folder)


def running(rig: Rig) -> epochs.Epoch:
    current = standing(rig).current
    assert current
    return current


def answers_again(rig: Rig) -> bool:
    try:
        return rig.ask().status_code == 200
    except httpx.HTTPError:
        return False


def restart(rig: Rig) -> epochs.Epoch:
    """With a short time for what has begun, so that the next restart need not wait."""
    return gateway.restart(rig.layout, drain_s=3)


class Stream(threading.Thread):
    """A client that reads one long answer."""

    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self.rig, self.lines, self.began = rig, 0, threading.Event()
        self.last = ""

    def run(self) -> None:
        headers = {"authorization": f"Bearer {self.rig.key}"}
        body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        url = f"{self.rig.gateway.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, headers=headers, timeout=30, trust_env=False) as answer:
            for line in filter(None, answer.iter_lines()):
                self.lines, self.last = self.lines + 1, line
                self.began.set()


def test_a_restart_refuses_no_request_and_breaks_no_stream(rig: Rig) -> None:
    """The old Envoy finishes an answer that outlasts the restart."""
    rig.behave("1", chunks=30, chunk_s=0.1)
    before, stream = running(rig), Stream(rig)
    with rig.load(clients=4) as load:
        stream.start()
        assert stream.began.wait(30)
        after = restart(rig)
        asked = load.total
        assert rig.gateway.wait(lambda: load.total > asked + 50, 30)
        stream.join(30)
        assert rig.gateway.wait(lambda: not epochs.alive(before.process), 30)
    assert (stream.lines, stream.last) == (31, "data: [DONE]")
    assert load.failures == []
    assert after.number == before.number + 1
    assert after.process != before.process
    rig.gateway.apply()  # returns once the new one says that it has taken the configuration
    assert rig.gateway.wait(lambda: standing(rig).draining is None, 30)


def test_who_keeps_envoy_may_be_killed_without_a_client_noticing(rig: Rig) -> None:
    """Its next start goes on with the Envoy that runs."""
    before = running(rig)
    with rig.load() as load:
        keeper = rig.supervisor.state("gateway")
        assert keeper
        assert keeper.pid
        os.kill(keeper.pid, signal.SIGKILL)

        def kept_again() -> bool:
            state = rig.supervisor.state("gateway")
            return bool(state and state.state == "RUNNING" and state.pid != keeper.pid)

        assert rig.gateway.wait(kept_again, 60)
        after = restart(rig)
    assert load.failures == []
    assert after.number == before.number + 1


def test_an_unchanged_gateway_is_left_alone_and_a_changed_bootstrap_takes_over(rig: Rig) -> None:
    """`up` writes what is wanted; only a difference starts an epoch."""
    before = running(rig)
    rig.supervisor.put(gateway.program(rig.layout))
    assert epochs.runs_as_wanted(rig.gateway.folder)
    wanted = epochs.read_wanted(rig.gateway.folder)
    assert wanted
    assert wanted.digest == before.wanted
    with rig.load() as load:
        changed = epochs.write_wanted(rig.gateway.folder, (*wanted.command, "--skip-deprecated-logs"), b"another")
        after = epochs.await_epoch(rig.gateway.folder, changed, 60)
    assert load.failures == []
    assert after.number > before.number


@pytest.mark.drill
def test_an_epoch_that_does_not_come_up_leaves_the_one_before_alone(rig: Rig) -> None:
    """It is not tried again until something else is wanted."""
    before, wanted = running(rig), epochs.read_wanted(rig.gateway.folder)
    assert wanted
    with rig.load() as load:
        broken = epochs.write_wanted(rig.gateway.folder, (*wanted.command, "--no-such-option"), b"broken")
        with pytest.raises(TransientError, match="did not come up"):
            epochs.await_epoch(rig.gateway.folder, broken, 60)
        asked = load.total
        assert rig.gateway.wait(lambda: load.total > asked + 20, 30)
    assert load.failures == []
    assert running(rig) == before
    gateway.program(rig.layout)
    assert restart(rig).number == before.number + 1


def test_a_killed_envoy_is_replaced_at_once(rig: Rig) -> None:
    """Without the supervisor's pause, unless it dies again and again."""
    assert rig.gateway.wait(lambda: time.time() - running(rig).began_at > envoy_keeper.SETTLED_S, 30)
    before = running(rig)
    os.kill(before.process.pid, signal.SIGKILL)
    assert rig.gateway.wait(lambda: running(rig).process != before.process and answers_again(rig), 30)
    assert running(rig).number == 0


@pytest.mark.drill
def test_who_keeps_envoy_may_be_killed_anywhere_in_a_restart(rig: Rig) -> None:
    """The next start finishes it, and the gateway answers."""
    pause = random.Random(3)
    for _ in range(8):
        assert rig.gateway.wait(lambda: standing(rig).draining is None, 30)
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(restart, rig)
            time.sleep(pause.uniform(0.0, 1.5))
            keeper = rig.supervisor.state("gateway")
            assert keeper
            if keeper.pid:
                os.kill(keeper.pid, signal.SIGKILL)
            done.result(60)
        assert rig.gateway.wait(lambda: answers_again(rig), 60)
        wanted = epochs.read_wanted(rig.gateway.folder)
        assert wanted
        assert running(rig).wanted == wanted.digest
        assert len(envoy_keeper.envoys(rig.gateway.folder)) <= 2
