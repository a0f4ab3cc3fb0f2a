"""The rollout behind a deployment: from the state while it knows it, then from the audit log."""

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import audit
from pipeline.contracts.trace import Request, RolloutSeen
from pipeline.fleet import files as fleet_files
from pipeline.fleet.files import FleetFiles
from pipeline.fleet.parts import ended, with_phase
from pipeline.fleet.state import Deployment, ModelFleet, Rollout, Served
from pipeline.stack.layout import Layout
from pipeline.trace.rollouts import entries_of, find_moment, find_rollout

AGES = 4_000_000_000.0


def request(deployment: int, at: float = AGES) -> Request:
    fields: dict[str, Any] = dict.fromkeys(("duration_ms", "client", "path", "upstream", "attempts", "details"))
    return Request(
        request_id="r", at=at, status=200, model="m", version="2", deployment=deployment, log_path="", **fields
    )


def roll_out(home: Path, generation: int, version: str, by: str = "") -> None:
    """Plan, canary, a step, and the end, as a rollout changes the state."""
    files = FleetFiles(home)
    served = Served(version=version, generation=generation, deployment=generation)
    deployment = Deployment(version=version, generation=generation, bundle_digest=f"{generation:064d}", replicas=())

    def plan(model: ModelFleet) -> ModelFleet:
        rollout = Rollout(
            generation=generation,
            request_id=f"scheduled__{generation}",
            version=version,
            previous=model.serving.version if model.serving else None,
            by=by,
            started_at=time.time(),
        )
        return model.changed(generation=generation).with_rollout(rollout)

    def start(model: ModelFleet) -> ModelFleet:
        return with_phase(model.with_deployment(deployment).changed(canary=served), generation, "start_canary")

    def finish(model: ModelFleet) -> ModelFleet:
        model = model.changed(serving=served, canary=None, weights={generation: 100}, deployments=(deployment,))
        return with_phase(model, generation, "promote", **ended("promoted", ""))

    for change in (plan, start, finish):
        files.update("m", change)


def find(layout: Layout, asked: Request) -> RolloutSeen | None:
    return find_rollout(layout, asked, entries_of(layout, asked))


def test_the_state_and_the_log_together_tell_of_a_rollout(tmp_path: Path) -> None:
    """Who, why, when, how it ended, which bytes, and which entries say so."""
    audit.record(tmp_path, action="promote", actor="ada", model="m", version="2", reason="better answers")
    roll_out(tmp_path, 1, "2", by="ada")
    layout = Layout(tmp_path)
    found = find(layout, request(1))
    assert found is not None
    assert (found.version, found.previous, found.by, found.why) == ("2", None, "ada", "better answers")
    assert (found.outcome, found.known_from, found.entries) == ("promoted", "the fleet's state", (2, 3, 4, 5))
    assert found.bundle_digest == f"{1:064d}"


def test_a_rollout_that_the_state_forgot_is_told_by_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same words."""
    monkeypatch.setattr("pipeline.fleet.state.MAX_HISTORY", 2)
    for generation in (1, 2, 3, 4):
        roll_out(tmp_path, generation, str(generation), by="ada")
    layout = Layout(tmp_path)
    assert [kept.generation for kept in fleet_files.FleetFiles(tmp_path).get("m").history] == [3, 4]
    found = find(layout, request(2))
    assert found is not None
    assert (found.version, found.previous, found.by, found.outcome) == ("2", "1", "ada", "promoted")
    assert (found.known_from, found.bundle_digest, len(found.entries)) == ("the audit log", f"{2:064d}", 4)


def test_no_more_of_the_log_is_read_than_the_request_needs(tmp_path: Path) -> None:
    """Back to the move of the alias that its rollout followed."""
    for generation in (1, 2, 3):
        audit.record(tmp_path, action="promote", actor="ada", model="m", version=str(generation))
        roll_out(tmp_path, generation, str(generation), by="ada")
    found = entries_of(Layout(tmp_path), request(2))
    assert (found[0].action, found[0].version, found[-1].version) == ("promote", "2", "3")


def test_a_rollout_that_nobody_knows_is_none(tmp_path: Path) -> None:
    """Neither the state nor the log."""
    assert find(Layout(tmp_path), request(7)) is None


def test_a_rollout_of_the_same_number_that_began_later_is_another_one(tmp_path: Path) -> None:
    """The state was removed, and counts from 1 again."""
    roll_out(tmp_path, 1, "2")
    before = next(audit.newest_first(tmp_path)).moment
    (FleetFiles(tmp_path).folder / "m.json").unlink()
    while True:  # two entries of one millisecond cannot be told apart
        entry = audit.record(tmp_path, action="pause", actor="ada")
        if entry.moment > before:
            break
    roll_out(tmp_path, 1, "3")
    layout = Layout(tmp_path)
    older, newer = find(layout, request(1, at=before)), find(layout, request(1))
    assert older is not None
    assert newer is not None
    assert (older.version, older.known_from) == ("2", "the audit log")
    assert (newer.version, newer.known_from) == ("3", "the fleet's state")


def test_nobody_is_named_where_nobody_is_known(tmp_path: Path) -> None:
    """And no reason is taken from somebody else's move."""
    audit.record(tmp_path, action="promote", actor="ada", model="m", version="2", reason="better answers")
    roll_out(tmp_path, 1, "3")
    found = find(Layout(tmp_path), request(1))
    assert found is not None
    assert (found.by, found.why) == ("unknown", "")


def test_what_was_served_at_a_moment_is_told_by_the_log(tmp_path: Path) -> None:
    """By version; nothing before the log begins."""
    roll_out(tmp_path, 1, "2")
    entries = entries_of(Layout(tmp_path), request(1))
    moment = find_moment(entries, AGES)
    assert moment is not None
    assert (moment.generation, moment.shares) == (1, {"version 2 (g1)": 100})
    assert find_moment(entries, 0.0) is None


def test_who_moved_the_champion_is_told_by_the_newest_entry_about_it(tmp_path: Path) -> None:
    """An older one, one about another version or model, or a refused one says nothing."""

    nobody = ("", "")

    def tell(action: str, version: str, model: str = "m") -> None:
        audit.record(tmp_path, action=action, actor="ada", model=model, version=version, reason="it is better")

    assert audit.who_made_champion(tmp_path, "m", "2") == nobody
    tell("promote", "2")
    tell("promote", "9", model="mm")
    assert audit.who_made_champion(tmp_path, "m", "2") == ("ada", "it is better")
    assert audit.who_made_champion(tmp_path, "m", "3") == nobody
    tell("refused", "2")
    assert audit.who_made_champion(tmp_path, "m", "2") == nobody
    tell("rollback", "1")
    assert audit.who_made_champion(tmp_path, "m", "1") == ("ada", "it is better")
    tell("planned", "3")
    assert audit.who_made_champion(tmp_path, "m", "1") == nobody
    assert audit.who_made_champion(tmp_path, "m", "3") == ("ada", "")
    audit.record(tmp_path, action="planned", actor="unknown", model="m", version="3")
    assert audit.who_made_champion(tmp_path, "m", "3") == nobody
