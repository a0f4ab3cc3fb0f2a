"""What changes of the fleet's state leave in the audit log."""

import multiprocessing
import random
import time
from pathlib import Path

import pytest

from pipeline import audit
from pipeline.fleet.changes import events
from pipeline.fleet.files import FleetFiles
from pipeline.fleet.parts import ended, with_phase
from pipeline.fleet.state import Deployment, ModelFleet, Rollout, Served, model_paths

NEW = Deployment(version="2", generation=2, bundle_digest="2" * 64, replicas=())
OLD = Deployment(version="1", generation=1, bundle_digest="1" * 64, replicas=())
SERVED = ModelFleet(
    name="m",
    generation=1,
    serving=Served(version="1", generation=1, deployment=1),
    weights={1: 100},
    deployments=(OLD, NEW),
)
ROLLOUT = Rollout(generation=2, request_id="run-2", version="2", previous="1", started_at=1.0)


def planned(by: str = "") -> ModelFleet:
    return SERVED.changed(generation=2).with_rollout(ROLLOUT.model_copy(update={"by": by}))


def ready() -> ModelFleet:
    canary = Served(version="2", generation=2, deployment=2)
    return with_phase(planned().changed(canary=canary), 2, "start_canary")


def told(before: ModelFleet, after: ModelFleet) -> list[tuple[str, str, str]]:
    return [(event.action, event.actor, event.reason) for event in events(before, after)]


def test_a_planned_rollout_names_who_asked_or_says_that_nobody_knows() -> None:
    """MLflow does not keep who moved an alias."""
    assert told(SERVED, planned("ada")) == [("planned", "ada", "from 1 to 2")]
    assert told(SERVED, planned()) == [("planned", "unknown", "from 1 to 2")]


def test_the_canarys_bytes_are_told_when_it_is_ready() -> None:
    """So that the log alone leads from a deployment to its bundle."""
    event = events(planned(), ready())[0]
    assert (event.action, event.version, event.generation, event.actor) == ("ready", "2", 2, "rollout 2")
    assert (event.details["bundle_digest"], event.details["deployment"]) == (NEW.bundle_digest, 2)


def test_moved_traffic_is_told_by_version() -> None:
    """Before and after."""
    event = events(ready(), ready().changed(weights={1: 75, 2: 25}))[0]
    assert event.action == "moved"
    assert event.details == {
        "from": {"version 1 (g1)": 100},
        "to": {"version 1 (g1)": 75, "version 2 (g2)": 25},
    }


def test_a_failure_is_told_with_its_reason_after_the_traffic_it_moved() -> None:
    """Once, however often the phase is repeated."""
    shifting = ready().changed(weights={1: 75, 2: 25})
    failed = with_phase(shifting.changed(weights={1: 100}), 2, "shift", **ended("failed", "too slow"))
    assert told(shifting, failed) == [("moved", "rollout 2", "traffic"), ("failed", "rollout 2", "too slow")]
    assert told(failed, with_phase(failed.changed(canary=None), 2, "roll_back", **ended("failed", "too slow"))) == []


def test_a_rollback_names_the_person_and_is_no_planned_rollout() -> None:
    """It is planned and done in one move."""
    rollout = Rollout(
        generation=2,
        request_id="rollback-2",
        version="1",
        previous="2",
        phases=("rollback",),
        outcome="rolled back",
        reason="wrong answers",
        by="ada",
        started_at=1.0,
    )
    after = SERVED.changed(generation=2, weights={2: 100}).with_rollout(rollout)
    assert told(SERVED, after) == [("moved", "ada", "traffic"), ("rolled-back", "ada", "wrong answers")]


def test_a_rollout_that_a_newer_one_ends_is_told_before_it(tmp_path: Path) -> None:
    """Then what the newer one moves."""
    shifting = ready().changed(weights={1: 75, 2: 25})
    newer = ROLLOUT.model_copy(update={"generation": 3, "version": "3", "by": "ada"})
    older = shifting.history[0].model_copy(update=ended("superseded", "rollout 3 has begun"))
    after = shifting.changed(generation=3, weights={1: 100}, canary=None).with_rollout(older).with_rollout(newer)
    assert told(shifting, after) == [
        ("superseded", "rollout 2", "rollout 3 has begun"),
        ("planned", "ada", "from 1 to 3"),
        ("moved", "rollout 3", "traffic"),
    ]


def test_what_changes_nothing_is_not_told() -> None:
    """Phases apply the state anew whenever they are repeated."""
    assert told(SERVED, SERVED) == []


def test_a_change_is_in_the_log_when_the_lock_is_given_back(tmp_path: Path) -> None:
    """Also when the block ends with an error after the change was written."""
    files = FleetFiles(tmp_path)

    def fail() -> None:
        with files.lock():
            files.write(planned("ada"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [entry.action for entry in audit.read_entries(tmp_path)] == ["planned", "moved"]


def test_what_a_killed_writer_left_is_recorded_by_the_next_change(tmp_path: Path) -> None:
    """Killed after it had written the state, before it gave back the lock."""
    FleetFiles(tmp_path).write(planned("ada"))
    assert list(audit.read_entries(tmp_path)) == []
    FleetFiles(tmp_path).update("m", lambda model: with_phase(model, 2, "shift", **ended("failed", "too slow")))
    assert [entry.action for entry in audit.read_entries(tmp_path)] == ["planned", "moved", "failed"]


def test_what_a_killed_writer_left_is_recorded_before_the_log_is_read(tmp_path: Path) -> None:
    """Once."""
    FleetFiles(tmp_path).write(planned("ada"))
    for _ in range(2):
        FleetFiles(tmp_path).record_all()
    assert [entry.action for entry in audit.read_entries(tmp_path)] == ["planned", "moved"]


def test_who_reads_the_log_while_a_rollout_writes_doubles_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look at the state and its turn at the log, the state moves on and is recorded."""
    FleetFiles(tmp_path).write(planned("ada"))
    reader, writer = FleetFiles(tmp_path), FleetFiles(tmp_path)

    def found_then_a_writer(home: Path) -> list[Path]:
        seen = model_paths(home)
        writer.update("m", lambda model: with_phase(model, 2, "shift", **ended("failed", "too slow")))
        return seen

    monkeypatch.setattr("pipeline.fleet.files.model_paths", found_then_a_writer)
    reader.record_all()
    assert [entry.action for entry in audit.read_entries(tmp_path)] == ["planned", "moved", "failed"]


def test_a_state_that_was_removed_and_begun_anew_is_recorded_again(tmp_path: Path) -> None:
    """Its rollouts count from 1 again; the log goes on."""
    for _ in range(2):
        files = FleetFiles(tmp_path)
        files.update("m", lambda model: planned("ada"))
        (files.folder / "m.json").unlink()
    assert [entry.action for entry in audit.read_entries(tmp_path)] == ["planned", "moved"] * 2
    assert audit.verify(tmp_path).whole


def roll_out_for_ever(home: Path) -> None:
    files = FleetFiles(home)
    while True:
        generation = files.get("m").generation + 1
        rollout = Rollout(generation=generation, request_id="r", version=str(generation), previous=None, started_at=1.0)
        files.update("m", lambda model, new=rollout: model.changed(generation=new.generation).with_rollout(new))
        files.update("m", lambda model, at=generation: with_phase(model, at, "promote", **ended("promoted", "")))


def test_a_writer_killed_anywhere_loses_and_doubles_no_entry(tmp_path: Path) -> None:
    """kill -9 at ten random moments; what it left is recorded by the next one, and the log agrees with the state."""
    moments = random.Random(11)
    for _ in range(10):
        before = FleetFiles(tmp_path).get("m").generation
        writer = multiprocessing.get_context("fork").Process(target=roll_out_for_ever, args=(tmp_path,))
        writer.start()
        while FleetFiles(tmp_path).get("m").generation == before:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.03))
        writer.kill()
        writer.join()
    FleetFiles(tmp_path).record_all()
    assert audit.verify(tmp_path).whole
    told = [(entry.generation, entry.action) for entry in audit.read_entries(tmp_path)]
    newest = FleetFiles(tmp_path).get("m").generation
    assert newest >= 10
    assert [generation for generation, action in told if action == "planned"] == list(range(1, newest + 1))
    promoted = [generation for generation, action in told if action == "promoted"]
    kept = FleetFiles(tmp_path).get("m").history
    assert [rollout.generation for rollout in kept if rollout.outcome == "promoted"] == [
        generation for generation in promoted if generation and generation >= kept[0].generation
    ]
    assert len(promoted) == len(set(promoted))
