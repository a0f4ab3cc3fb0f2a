"""The judgement that others read while a rollout looks."""

from pathlib import Path

import pytest

from pipeline.errors import SpecError
from pipeline.fleet.analysis.comparison import Comparison
from pipeline.fleet.analysis.live import judgement_path, read_judgement, view_fleet, write_judgement
from pipeline.fleet.files import FleetFiles
from pipeline.fleet.state import ModelFleet, models_path
from tests.judgements import judgement

JUDGEMENT = judgement("tiny", 2)


def test_a_judgement_is_read_as_it_was_written(tmp_path: Path) -> None:
    """And there is none before the first rollout."""
    assert read_judgement(tmp_path, "tiny") is None
    write_judgement(tmp_path, JUDGEMENT)
    assert read_judgement(tmp_path, "tiny") == JUDGEMENT


def test_a_damaged_judgement_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    """Nobody is shown half a truth."""
    write_judgement(tmp_path, JUDGEMENT)
    judgement_path(tmp_path, "tiny").write_text("{")
    with pytest.raises(SpecError, match="remove it"):
        read_judgement(tmp_path, "tiny")


def test_a_comparison_says_in_one_line_what_is_known() -> None:
    """An end that is not known yet is a question mark."""
    found = Comparison(measure="error rate", unit="points", canary=0.5, high=2.0, margin=1.0, num_canary=200)
    assert found.describe() == "error rate 0.5 points, ? to 2 points (margin 1 points): undecided"


def test_a_damaged_file_takes_nothing_away_but_what_it_held(tmp_path: Path) -> None:
    """Each is named with what is wrong and what to do."""
    for name in ("cut", "odd", "well"):
        FleetFiles(tmp_path).write(ModelFleet(name=name, generation=2))
        write_judgement(tmp_path, judgement(name, 2))
    (models_path(tmp_path) / "cut.json").write_text('{"name": "cut", ')
    judgement_path(tmp_path, "odd").write_text('{"model": 1}')
    seen = view_fleet(tmp_path)
    assert list(seen.models) == ["odd", "well"]
    assert seen.judgements == {"well": judgement("well", 2)}
    assert [(found.model, found.file) for found in seen.damaged] == [
        ("cut", "models/cut.json"),
        ("odd", "judgements/odd.json"),
    ]
    assert seen.unreadable == {"cut"}
    assert "cut.json is damaged (Invalid JSON: EOF" in seen.damage_of("cut")
    assert seen.damage_of("cut").endswith("remove it, then roll the model out again")
    assert "odd.json is damaged (model: Input should be a valid string): remove it" in seen.damage_of("odd")
    assert seen.damage_of("well") == ""
