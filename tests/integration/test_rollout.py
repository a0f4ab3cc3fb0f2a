"""Rollouts from the alias to the traffic: a real gateway and supervisord, stand-in replicas, clients all the while."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_rig import MODEL, FileRegistry, Load, Rig

from pipeline.errors import DataError, IntegrityError, SpecError, TransientError
from pipeline.fleet.operations import rollback
from pipeline.registry.models import RegisteredVersion

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A fleet that serves version 1, for tests after which it must be as it was."""
    rig = Rig(tmp_path_factory.mktemp("steady"))
    rig.up()
    rig.roll_out("1")
    yield rig
    rig.supervisor.stop()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A fleet that serves version 1."""
    rig = Rig(tmp_path)
    rig.up()
    rig.roll_out("1")
    yield rig
    rig.supervisor.stop()


def running_replicas(rig: Rig) -> list[str]:
    return [state.name for state in rig.supervisor.states() if state.name.startswith("replica-")]


def served_versions(rig: Rig, requests: int = 30) -> set[str]:
    return {rig.ask().headers["x-slipway-version"] for _ in range(requests)}


def until_asked(load: Load, requests: int) -> None:
    """Waits until the clients have asked so many more times."""
    goal = load.total + requests
    while load.total < goal:
        load.over.wait(0.01)


def test_a_new_version_takes_over_without_a_failed_request(rig: Rig) -> None:
    """Weights rise, the old replicas are drained and removed, the alias `serving` follows."""
    with rig.load() as load:
        until_asked(load, 20)
        results = rig.roll_out("2")
        until_asked(load, 20)
    assert [(result.phase, result.outcome) for result in results] == [
        ("plan", "done"),
        ("start_canary", "done"),
        ("shift", "healthy"),
        ("promote", "done"),
        ("retire", "done"),
    ]
    assert load.failures == []
    assert load.count("1") > 0 < load.count("2")
    assert served_versions(rig) == {"2"}
    assert rig.registry.alias(MODEL, "serving") == "2"
    assert running_replicas(rig) == ["replica-tiny-v2-g2-0", "replica-tiny-v2-g2-1"]
    assert rig.registry.tags()["tiny/2/slipway.rollout"] == "served"


NEVER_READY = {"error_rate": 1.0, "status": 503}
BAD_VERSIONS = [
    ("11", {"error_rate": 0.5}, {}, "shift", "error rate .*, beyond max_error_rate"),
    ("12", {"error_rate": 0.5, "status": 400}, {}, "shift", "refused probes .*, beyond max_error_rate"),
    ("13", {"delay_s": 0.5}, {}, "shift", "latency, median .* worse, beyond max_latency_ratio"),
    ("14", {"claims": "7"}, {}, "start_canary", "answers as version 7"),
    # Supervisord gives up where it dies at once; where the machine is so busy that it lived for a second, the rollout.
    ("15", {"crash": True}, {}, "start_canary", "does not stay up|crashed 3 times before its first answer"),
    ("16", NEVER_READY, {"ready_timeout_s": 3.0}, "start_canary", "was not ready after 3 s"),
    ("17", {"unhealthy": True}, {}, "start_canary", "does not find every replica"),
]


@pytest.mark.parametrize(("version", "manners", "settings", "phase", "reason"), BAD_VERSIONS)
def test_a_bad_version_is_rolled_back_while_the_old_one_serves(
    steady: Rig,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    manners: dict[str, Any],
    settings: dict[str, Any],
    phase: str,
    reason: str,
) -> None:
    """Its replicas are gone, the champion is put back, and the version says why it failed."""
    if "unhealthy" in manners:
        monkeypatch.setattr("pipeline.fleet.starting.HEALTHY_TIMEOUT_S", 2.0)
    steady.registry.configure(**{"ready_timeout_s": 60.0, **settings})
    steady.behave(version, **manners)
    before = running_replicas(steady)
    with steady.load() as load:
        until_asked(load, 20)
        results = {result.phase: result for result in steady.roll_out(version)}
        until_asked(load, 20)
    assert results[phase].outcome == "unhealthy"
    assert re.search(reason, results[phase].reason)
    assert [failure for failure in load.failures if not failure.startswith("400")] == []
    assert served_versions(steady) == {"1"}
    assert (steady.registry.alias(MODEL, "champion"), steady.registry.alias(MODEL, "serving")) == ("1", "1")
    assert steady.registry.tags()[f"tiny/{version}/slipway.rollout"] == "failed"
    assert re.search(reason, steady.registry.tags()[f"tiny/{version}/slipway.rollout_reason"])
    assert running_replicas(steady) == before


def test_a_bundle_whose_bytes_changed_is_never_started(steady: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before any replica of it exists."""

    def altered(version: RegisteredVersion) -> Path:
        raise IntegrityError("model.safetensors was altered")

    monkeypatch.setattr(steady.fleet, "fetch_bundle", altered)
    before = running_replicas(steady)
    canary = {result.phase: result for result in steady.roll_out("18")}["start_canary"]
    assert (canary.outcome, canary.reason) == ("unhealthy", "model.safetensors was altered")
    assert steady.registry.alias(MODEL, "champion") == "1"
    assert running_replicas(steady) == before


def test_a_champion_that_slipway_did_not_register_is_put_back(steady: Rig) -> None:
    """The plan fails with the reason, and nothing moves."""
    with pytest.raises(DataError, match="not registered by Slipway"):
        steady.roll_out("foreign")
    assert steady.registry.alias(MODEL, "champion") == "1"
    assert served_versions(steady) == {"1"}


def test_there_is_no_way_back_from_the_first_version(steady: Rig) -> None:
    """An error that says so."""
    with pytest.raises(SpecError, match="no earlier version"):
        rollback(steady.layout, MODEL, steady.registry)


def test_a_first_version_that_fails_leaves_no_champion(tmp_path: Path) -> None:
    """There is nothing to go back to."""
    rig = Rig(tmp_path)
    rig.up()
    try:
        rig.behave("1", crash=True)
        assert rig.roll_out("1")[1].outcome == "unhealthy"
        assert rig.registry.alias(MODEL, "champion") is None
        assert rig.ask().status_code == 503
        rig.behave("1")
        assert rig.roll_out("1")[-1].outcome == "done"
        assert rig.ask().status_code == 200
    finally:
        rig.supervisor.stop()


def test_repeated_events_and_repeated_phases_change_nothing(rig: Rig) -> None:
    """The same request plans the same generation; a phase done before is done."""
    assert rig.roll_out("1")[0].outcome == "nothing_to_do"
    rig.registry.set_alias(MODEL, "champion", "2")
    first = rig.follow("event")
    state = rig.state()
    again = rig.follow("event")
    assert [result.outcome for result in again] == [result.outcome for result in first]
    assert again[0].generation == first[0].generation
    assert rig.state().deployments == state.deployments
    assert rig.state().serving == state.serving
    assert rig.follow("another event")[0].outcome == "nothing_to_do"


def test_a_newer_rollout_supersedes_the_one_under_way(rig: Rig) -> None:
    """The older one ends where it is; the newer one removes its canary and finishes."""
    rig.registry.configure(step_s=5.0)
    rig.registry.set_alias(MODEL, "champion", "2")
    older = rig.phase("plan", request_id="older")
    assert rig.phase("start_canary", request_id="older", generation=older.generation).outcome == "done"
    ended: list[str] = []

    def shift() -> None:
        ended.append(rig.phase("shift", request_id="older", generation=older.generation).outcome)

    with rig.load() as load:
        thread = threading.Thread(target=shift)
        thread.start()
        while load.count("2") == 0:
            load.over.wait(0.01)
        rig.registry.configure(step_s=1.0)
        rig.roll_out("3")
        thread.join()
    assert ended == ["superseded"]
    assert load.failures == []
    for phase in ("promote", "roll_back", "retire"):
        assert rig.phase(phase, request_id="older", generation=older.generation).outcome == "superseded"
    assert served_versions(rig) == {"3"}
    assert running_replicas(rig) == ["replica-tiny-v3-g3-0", "replica-tiny-v3-g3-1"]


def warm_pair(rig: Rig) -> None:
    """Version 2 serves, version 1 is warm: as during `retire`."""
    rig.registry.set_alias(MODEL, "champion", "2")
    generation = rig.phase("plan", request_id="two").generation
    for phase in ("start_canary", "shift", "promote"):
        rig.phase(phase, request_id="two", generation=generation)


def test_rolling_back_while_the_old_replicas_are_warm_is_a_weight_change(rig: Rig) -> None:
    """Immediate, no replica starts, no request fails, and the rollout that the alias starts only cleans up."""
    warm_pair(rig)
    before = {state.name: state.pid for state in rig.supervisor.states()}
    with rig.load() as load:
        until_asked(load, 20)
        done = rollback(rig.layout, MODEL, rig.registry)
        assert served_versions(rig) == {"1"}
        assert {state.name: state.pid for state in rig.supervisor.states()} == before
        results = rig.follow("after the rollback")
    assert (done.version, done.immediate) == ("1", True)
    assert load.failures == []
    assert (rig.registry.alias(MODEL, "champion"), rig.registry.alias(MODEL, "serving")) == ("1", "1")
    assert [result.outcome for result in results] == ["done", "done", "healthy", "done", "done"]
    assert running_replicas(rig) == ["replica-tiny-v1-g1-0", "replica-tiny-v1-g1-1"]
    assert rig.phase("retire", request_id="two", generation=2).outcome == "superseded"


def test_moving_the_alias_back_takes_the_warm_replicas_back(rig: Rig) -> None:
    """Somebody sets the champion in MLflow's own page: the rollout starts nothing."""
    warm_pair(rig)
    before = {state.name: state.pid for state in rig.supervisor.states()}
    results = {result.phase: result for result in rig.roll_out("1")}
    assert results["start_canary"].reason == "its replicas were still warm"
    assert served_versions(rig) == {"1"}
    assert {name: before[name] for name in running_replicas(rig)} == {
        state.name: state.pid for state in rig.supervisor.states() if state.name in running_replicas(rig)
    }


def test_rolling_back_to_a_cold_version_moves_the_alias_and_says_so(rig: Rig) -> None:
    """The rollout that follows starts replicas."""
    rig.roll_out("2")
    done = rollback(rig.layout, MODEL, rig.registry)
    assert (done.version, done.immediate) == ("1", False)
    assert rig.registry.alias(MODEL, "champion") == "1"
    assert served_versions(rig) == {"2"}
    rig.follow("alias moved")
    assert served_versions(rig) == {"1"}


class NoMlflow(FileRegistry):
    """MLflow goes away once the traffic has moved."""

    def compare_and_set_alias(self, name: str, alias: str, expected: str | None, version: str | None) -> bool:
        raise TransientError("MLflow does not answer")


def test_a_rollback_that_was_cut_short_is_finished_by_the_next_one(rig: Rig) -> None:
    """The second one does not take the first back."""
    warm_pair(rig)
    with pytest.raises(TransientError, match="the traffic is on version 1"):
        rollback(rig.layout, MODEL, NoMlflow(rig.registry.path))
    assert served_versions(rig) == {"1"}
    done = rollback(rig.layout, MODEL, rig.registry)
    assert (done.version, done.replaced, done.immediate) == ("1", "2", True)
    assert served_versions(rig) == {"1"}
    assert (rig.registry.alias(MODEL, "champion"), rig.registry.alias(MODEL, "serving")) == ("1", "1")


def test_a_version_whose_bytes_are_others_than_what_serves_is_rolled_out(rig: Rig) -> None:
    """A registry that was put back from a backup gives the numbers of lost versions again."""
    rig.registry.give_other_bytes("1")
    results = {result.phase: result.outcome for result in rig.follow("after a restore")}
    assert results["promote"] == "done"
    assert running_replicas(rig) == ["replica-tiny-v1-g2-0", "replica-tiny-v1-g2-1"]
