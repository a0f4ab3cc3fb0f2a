"""The judgement that others read while a rollout looks."""

from pathlib import Path

import pytest

from pipeline.errors import SpecError
from pipeline.fleet.analysis.comparison import Comparison
from pipeline.fleet.analysis.live import Judgement, judgement_path, read_judgement, write_judgement

JUDGEMENT = Judgement(
    model="tiny",
    generation=2,
    version="2",
    stable_version="1",
    step=0,
    weight=25,
    began_at=1.0,
    updated_at=2.0,
    client_requests=7,
    probes=5,
    finding="undecided",
    reason="",
    comparisons=(Comparison(measure="error rate", unit="points", canary=0.5, high=2.0, margin=1.0, num_canary=200),),
)


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
    line = JUDGEMENT.comparisons[0].describe()
    assert line == "error rate 0.5 points, ? to 2 points (margin 1 points): undecided"
