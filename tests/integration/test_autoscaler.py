"""The autoscaler with a real gateway and supervisord, stand-in replicas, and clients all the while."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fleet_rig import MODEL, Rig

from pipeline import audit
from pipeline.errors import IntegrityError
from pipeline.fleet.autoscaling.watching import Autoscaler
from pipeline.fleet.capacity import Capacity
from pipeline.fleet.state import ModelFleet, Replica
from pipeline.registry.models import RegisteredVersion

pytestmark = pytest.mark.integration

AUTOSCALE = {"max_replicas": 3, "requests_per_replica": 2, "up_after_s": 0.5, "down_after_s": 1.5}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A fleet that serves version 1 with one replica, and may have three."""
    rig = Rig(tmp_path)
    rig.up()
    rig.registry.configure(replicas=1, steps=[100], autoscale=AUTOSCALE)
    rig.behave("1", delay_s=0.3)
    rig.roll_out("1")
    yield rig
    rig.supervisor.stop()


@contextmanager
def scaling(rig: Rig) -> Iterator[None]:
    """The autoscaler looks, more often than it would, until the block ends."""
    over, autoscaler = threading.Event(), Autoscaler(rig.fleet)

    def watch() -> None:
        while not over.wait(0.1):
            autoscaler.look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def replicas(rig: Rig) -> tuple[Replica, ...]:
    (deployment,) = rig.state().deployments
    return deployment.replicas


def serving(rig: Rig) -> int:
    return sum(replica.use == "serving" for replica in replicas(rig))


def programs(rig: Rig) -> list[str]:
    return [state.name for state in rig.supervisor.states() if state.name.startswith("replica-")]


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def test_what_the_last_rollout_had_room_for_binds_nobody_afterwards(rig: Rig) -> None:
    """What fits now is measured now."""
    few = Capacity(strategy="replace", places=1, reason="others had taken the memory")

    def as_measured_then(model: ModelFleet) -> ModelFleet:
        return model.with_rollout(model.history[-1].model_copy(update={"capacity": few}))

    rig.fleet.change(MODEL, rig.state().generation, as_measured_then)
    with scaling(rig), rig.load(clients=8):
        until(lambda: serving(rig) == 3)


def test_replicas_follow_the_load_and_no_client_notices(rig: Rig) -> None:
    """Up under load, spread over all of them, down when it is gone; not one failed request."""
    with scaling(rig), rig.load(clients=1) as steady:
        with rig.load(clients=8) as burst:
            until(lambda: serving(rig) == 3)
            until(lambda: len(rig.gateway.hosts(MODEL, 1)) == 3)
            before = burst.total
            until(lambda: burst.total > before + 30)
            figures = rig.gateway.hosts(MODEL, 1)
            assert all(figures[replica.address].requests for replica in replicas(rig))
        until(lambda: len(replicas(rig)) == 1)
    assert burst.failures == steady.failures == []
    assert programs(rig) == [replica.id for replica in replicas(rig)] == ["replica-tiny-v1-g1-0"]
    told = [entry for entry in audit.read_entries(rig.layout) if entry.action == "scaled"]
    assert [entry.details["to"] for entry in told][-2:] == [2, 1]
    assert {entry.actor for entry in told} == {"autoscaler"}


def test_who_is_killed_while_a_replica_starts_or_leaves_is_finished_by_the_next(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is started twice, and nothing is left behind."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def look_until_killed() -> None:
        autoscaler = Autoscaler(rig.fleet)
        with pytest.raises(KeyboardInterrupt):
            until(lambda: autoscaler.look())  # type: ignore[func-returns-value]

    with rig.load(clients=8) as load:
        with monkeypatch.context() as patched:
            patched.setattr(rig.fleet.replicas, "start", killed)
            look_until_killed()
        assert {replica.use for replica in replicas(rig)} == {"serving", "starting"}
        Autoscaler(rig.fleet).look()
        until(lambda: len(rig.gateway.hosts(MODEL, 1)) == len(replicas(rig)))
        assert {replica.use for replica in replicas(rig)} == {"serving"}
        assert len(programs(rig)) == len(replicas(rig)) > 1
    with monkeypatch.context() as patched:
        patched.setattr(rig.fleet.replicas, "remove", killed)
        look_until_killed()
    assert {replica.use for replica in replicas(rig)} == {"serving", "leaving"}
    Autoscaler(rig.fleet).look()
    assert {replica.use for replica in replicas(rig)} == {"serving"}
    assert sorted(programs(rig)) == sorted(replica.id for replica in replicas(rig))
    assert load.failures == []


def test_a_bundle_that_may_not_be_loaded_any_more_gets_no_replica(rig: Rig) -> None:
    """What serves goes on; the reason is said and recorded once, not at every look."""

    def refuse(version: RegisteredVersion) -> Path:
        raise IntegrityError("model.safetensors was altered")

    rig.fleet.fetch_bundle = refuse
    with scaling(rig), rig.load(clients=8) as load:
        until(lambda: any("model.safetensors was altered" in line for line in rig.said))
        before = load.total
        until(lambda: load.total > before + 40)
    assert (load.failures, len(replicas(rig))) == ([], 1)
    failed = [entry for entry in audit.read_entries(rig.layout) if entry.action == "scaling-failed"]
    assert [entry.reason for entry in failed] == ["model.safetensors was altered"]


def test_a_rollout_keeps_the_number_of_replicas_and_is_never_scaled(rig: Rig) -> None:
    """A version that is promoted at a busy hour takes over with as many replicas as serve."""
    rig.behave("2", delay_s=0.3)
    with scaling(rig), rig.load(clients=8) as load:
        until(lambda: serving(rig) == 3)
        results = rig.roll_out("2")
        assert [result.outcome for result in results] == ["done", "done", "healthy", "done", "done"]
        assert len(replicas(rig)) == 3
    assert load.failures == []
    assert replicas(rig)[0].id.startswith("replica-tiny-v2-")
