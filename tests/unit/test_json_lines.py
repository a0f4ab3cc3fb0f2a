"""Logs for programs."""

import json
from pathlib import Path

import pytest

from pipeline import json_lines
from pipeline.contracts.specs import RolloutSpec
from pipeline.fleet.rollout_log import logged, path_of
from pipeline.stack.layout import Layout


def test_an_entry_is_one_line_without_what_is_not_known() -> None:
    """Whatever the message holds."""
    text = json_lines.line("gateway", 'a\n"b"', level="error", model="m", version=None)
    found = json.loads(text)
    assert "\n" not in text
    assert found.pop("ts").endswith("+00:00")
    assert found == {"level": "error", "logger": "gateway", "message": 'a\n"b"', "model": "m"}


def test_a_log_that_has_grown_large_is_kept_beside_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One before, no more."""
    monkeypatch.setattr(json_lines, "MAX_BYTES", 10)
    path = tmp_path / "rollouts.jsonl"
    for text in ("first entry", "second entry", "third"):
        json_lines.append(path, text)
    assert path.read_text() == "third\n"
    assert (tmp_path / "rollouts.1.jsonl").read_text() == "second entry\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_a_rollout_says_is_kept_with_its_number_and_its_run(tmp_path: Path) -> None:
    """Beside the task's own log."""
    layout = Layout(tmp_path)
    layout.create()
    said: list[str] = []
    spec = RolloutSpec(name="m", phase="shift", generation=7, request_id="run-1", version="3")
    logged(layout, spec, said.append)("5 % of the traffic is healthy")
    entry = json.loads(path_of(layout).read_text())
    assert said == [entry["message"]] == ["5 % of the traffic is healthy"]
    assert (entry["logger"], entry["model"], entry["version"], entry["generation"]) == ("rollout", "m", "3", 7)
    assert (entry["phase"], entry["run_id"]) == ("shift", "run-1")
