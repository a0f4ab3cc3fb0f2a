"""What a press does to the fleet's files, and what it refuses to do."""

from pathlib import Path

import pytest

from pipeline import audit
from pipeline.errors import SpecError
from pipeline.fleet.files import FleetFiles
from pipeline.fleet.state import ModelFleet, Rollout
from pipeline.stack.layout import Layout
from slipway_airflow.web.actions import perform
from slipway_airflow.web.presses import Press


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A home in which rollout 7 of `tiny` is under way."""
    running = Rollout(generation=7, request_id="run 7", version="7", previous=None, started_at=1.0)
    files = FleetFiles(tmp_path)
    with files.lock():
        files.write(ModelFleet(name="tiny", generation=7, history=(running,)))
    return Layout(tmp_path)


def press(action: str, *, generation: int = 7) -> Press:
    return Press.model_validate(
        {"model": "tiny", "action": action, "reason": "a complaint", "generation": generation, "version": None}
    )


def newest(layout: Layout) -> Rollout:
    return FleetFiles(layout.home_path).get("tiny").history[-1]


def test_pausing_and_resuming_name_who_pressed_and_why(layout: Layout) -> None:
    """In the fleet's state and in the audit log; it needs neither the gateway nor MLflow."""
    assert perform(layout, press("pause"), by="ada") == "Rollout 7 of tiny is paused."
    paused = newest(layout).paused
    assert paused is not None
    assert (paused.by, paused.reason) == ("ada", "a complaint")
    assert perform(layout, press("resume"), by="bob") == "Rollout 7 of tiny goes on."
    assert newest(layout).paused is None
    told = [(entry.action, entry.actor, entry.reason) for entry in audit.read_entries(layout)]
    assert told[-2:] == [("pause", "ada", "a complaint"), ("resume", "bob", "a complaint")]


@pytest.mark.parametrize("action", ["pause", "promote", "rollback"])
def test_a_press_on_a_page_that_is_out_of_date_does_nothing(layout: Layout, action: str) -> None:
    """Nobody stops, or promotes over, a rollout that they have not seen."""
    with pytest.raises(SpecError, match=r"rollout 7 of tiny has begun .* which showed 6: nothing was done"):
        perform(layout, press(action, generation=6), by="ada")
    assert newest(layout).paused is None
    assert [entry.action for entry in audit.read_entries(layout)] == ["planned"]


def test_promoting_needs_a_version(layout: Layout) -> None:
    """The page always sends one."""
    with pytest.raises(SpecError, match="say which"):
        perform(layout, press("promote"), by="ada")
