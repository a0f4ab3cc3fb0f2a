"""`slipway audit` and `slipway trace`, as a person sees them."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from pipeline import audit
from pipeline.audit.log import log_path
from pipeline.commands.app import app
from pipeline.errors import IntegrityError, SpecError
from pipeline.fleet.files import FleetFiles
from pipeline.fleet.state import ModelFleet
from pipeline.registry.anchors import AUDIT_TAG
from pipeline.registry.models import Registry
from pipeline.stack.layout import Layout


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path))
    for number in range(1, 4):
        audit.record(tmp_path, action="promote", actor="ada", model="demo", version=str(number), reason=f"try {number}")
    audit.record(tmp_path, action="pause", actor="[/grace]", model="other", reason="[0.9, 1.0] [/red] is odd")
    return tmp_path


def said(*arguments: str) -> str:
    return CliRunner().invoke(app, ["audit", *arguments], catch_exceptions=False).output


def test_the_entries_are_shown_oldest_first_as_they_were_written(home: Path) -> None:
    """Whatever looks like markup in a reason is text."""
    shown = said()
    assert shown.index("try 1") < shown.index("try 3") < shown.index("[0.9, 1.0] [/red] is odd")
    assert "[/grace]" in shown


def test_entries_are_chosen_by_model_action_and_number(home: Path) -> None:
    """As JSON, one a line."""
    found = [json.loads(line) for line in said("demo", "--action", "promote", "--last", "2", "--json").splitlines()]
    assert [entry["version"] for entry in found] == ["2", "3"]
    assert said("demo", "--action", "pause").startswith("No entry of demo with the action pause in ")


def test_verify_ends_with_an_error_that_names_the_broken_entry(home: Path) -> None:
    """And says before that all is well."""
    assert said("--verify").startswith("all 4 entries are as they were written")
    log_path(home).write_bytes(log_path(home).read_bytes().replace(b"try 2", b"try 9"))
    with pytest.raises(IntegrityError, match=r"broken at entry 2: .* entry 2 was altered"):
        said("--verify")
    found = json.loads(CliRunner().invoke(app, ["audit", "--verify", "--json"]).output)
    assert (found["whole"], found["broken_number"], found["num_entries"]) == (False, 2, 1)


def test_a_digest_in_mlflow_that_is_none_fails_the_verification(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a line that names the version: somebody has changed the tag, and what it kept cannot be compared."""
    Layout(home).create()
    Layout(home).choose_ports()
    FleetFiles(home).write(ModelFleet(name="demo"))
    tag = SimpleNamespace(version="2", tags={AUDIT_TAG: "two, I think"})
    monkeypatch.setattr(Registry, "names", lambda self: ["demo"])
    monkeypatch.setattr(Registry, "versions", lambda self, name: [tag])
    said_of_it = r"^the tag slipway\.audit of demo version 2 in MLflow is 'two, I think', expected the number"
    with pytest.raises(IntegrityError, match=said_of_it):
        said("--verify")
    done = CliRunner().invoke(app, ["audit", "--verify", "--json"])
    found = json.loads(done.output)
    assert (found["whole"], found["broken_number"], found["num_entries"]) == (False, None, 4)
    assert isinstance(done.exception, IntegrityError)


def test_a_trace_of_no_request_says_where_an_id_is_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no log at all yet."""
    monkeypatch.setattr("pipeline.trace.requests.PATIENCE_S", 0.0)
    with pytest.raises(SpecError, match=r"no request abc .*x-request-id"):
        CliRunner().invoke(app, ["trace", "abc"], catch_exceptions=False)
