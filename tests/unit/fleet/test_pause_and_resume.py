"""Holding a rollout where it is: what a person may ask for, and when."""

import multiprocessing
from pathlib import Path

import pytest

from pipeline import audit
from pipeline.errors import SpecError
from pipeline.fleet.files import FleetFiles
from pipeline.fleet.operations import pause, resume
from pipeline.fleet.parts import superseding
from pipeline.fleet.shifting import Held, _finished
from pipeline.fleet.state import ModelFleet, Rollout, read_models
from pipeline.stack.layout import Layout


def running(home: Path, **values: object) -> Layout:
    """A home in which rollout 2 of `m` runs."""
    rollout = Rollout(generation=2, request_id="r", version="5", previous="4", started_at=0.0)
    model = ModelFleet(name="m", generation=2, history=(rollout.model_copy(update=values),))
    FleetFiles(home).write(model)
    return Layout(home)


def newest(layout: Layout) -> Rollout:
    model = FleetFiles(layout.home_path).get("m")
    found = model.rollout(model.generation)
    assert found is not None
    return found


def test_a_paused_rollout_says_by_whom_and_why_until_it_is_resumed(tmp_path: Path) -> None:
    """And where it is stays as it was."""
    layout = running(tmp_path, step=1)
    paused = pause(layout, "m", by="ann", reason="a customer complains").paused
    assert paused is not None
    assert (paused.by, paused.reason) == ("ann", "a customer complains")
    assert newest(layout).paused == paused
    resume(layout, "m", by="bob", reason="")
    assert newest(layout).paused is None
    assert newest(layout).step == 1
    told = [entry for entry in audit.read_entries(tmp_path) if entry.action in ("pause", "resume")]
    assert [(entry.action, entry.actor, entry.reason, entry.generation) for entry in told] == [
        ("pause", "ann", "a customer complains", 2),
        ("resume", "bob", "", 2),
    ]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"outcome": "promoted"}, "no rollout of m runs now: its last one, 2, is promoted"),
        ({"outcome": "failed"}, "no rollout of m runs now: its last one, 2, is failed"),
        ({"phases": ("start_canary", "shift")}, "has passed its last step"),
    ],
)
def test_there_must_be_something_to_hold(tmp_path: Path, values: dict[str, object], reason: str) -> None:
    """Errors that say what is there instead."""
    layout = running(tmp_path, **values)
    with pytest.raises(SpecError, match=reason):
        pause(layout, "m", by="ann", reason="")
    assert newest(layout).paused is None


def test_a_model_nobody_rolled_out_cannot_be_paused(tmp_path: Path) -> None:
    """Nor is anything written for it."""
    with pytest.raises(SpecError, match="it was never rolled out"):
        pause(Layout(tmp_path), "nobody", by="ann", reason="")
    assert read_models(tmp_path) == {}


def test_what_is_not_paused_cannot_be_resumed(tmp_path: Path) -> None:
    """An error, since the one who asked believes something else."""
    with pytest.raises(SpecError, match="is not paused"):
        resume(running(tmp_path), "m", by="ann", reason="")


def _pause(home: Path, who: str, answers: "multiprocessing.Queue[str]") -> None:
    try:
        pause(Layout(home), "m", by=who, reason="mine")
        answers.put("done")
    except SpecError as error:
        answers.put(str(error))


def test_of_two_people_who_pause_at_once_one_is_told_about_the_other(tmp_path: Path) -> None:
    """Each in a process of its own."""
    layout = running(tmp_path)
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.Queue[str] = context.Queue()
    people = [context.Process(target=_pause, args=(tmp_path, who, answers)) for who in ("ann", "bob")]
    for person in people:
        person.start()
    said = sorted(answers.get(timeout=30) for _ in people)
    for person in people:
        person.join()
    holder = newest(layout).paused
    assert holder is not None
    assert said[0] == "done"
    assert f"is paused already, by {holder.by} since" in said[1]


def test_a_pause_that_comes_while_the_last_step_ends_still_holds(tmp_path: Path) -> None:
    """Whether it came in time is decided under the lock."""
    layout = running(tmp_path)
    pause(layout, "m", by="ann", reason="")
    files = FleetFiles(tmp_path)
    with pytest.raises(Held):
        files.update("m", _finished(2, ()))
    resume(layout, "m", by="ann", reason="")
    assert "shift" in files.update("m", _finished(2, ())).history[0].phases


def test_a_rollout_that_is_superseded_is_over(tmp_path: Path) -> None:
    """Its pause, too; and history has one running rollout at most."""
    layout = running(tmp_path)
    pause(layout, "m", by="ann", reason="")
    model = superseding(FleetFiles(tmp_path).get("m"))
    old = model.rollout(2)
    assert model.generation == 3
    assert old is not None
    assert (old.outcome, old.paused, old.reason) == ("superseded", None, "rollout 3 has begun")
