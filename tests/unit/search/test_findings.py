"""What the trials of a search came to: the best, what mattered, the table and the pictures."""

import csv
from pathlib import Path

import pytest

from pipeline.contracts.base import step_key
from pipeline.contracts.search import Search
from pipeline.contracts.specs import STEPS
from pipeline.contracts.study import StudyResult, StudySpec, TrialRecord
from pipeline.errors import DataError
from pipeline.job import Job
from pipeline.search.plots import best_so_far
from pipeline.settings import Settings
from pipeline.steps import study
from tests.search_trials import Trials

RATE, EPOCHS = "finetune.learning_rate", "finetune.epochs"
SEARCH = Search.model_validate({"space": {RATE: {"log": [1e-4, 1e-1]}, EPOCHS: {"choice": [2, 4]}}, "trials": 6})


@pytest.fixture
def trials(tmp_path: Path) -> Trials:
    return Trials(tmp_path / "store")


def run(home: Path, spec: StudySpec) -> tuple[StudyResult, Job]:
    """The step, without an MLflow."""
    key = step_key("study", STEPS["study"].version, spec)
    settings = Settings(home_path=home, venvs_path=home, store_uri=(home / "store").as_uri())
    job = Job(step="study", key=key, out_uri=f"{settings.store_uri}/study/{key}", settings=settings)
    job.clear_staging()
    return study.run(spec, job), job


def six(trials: Trials, search: Search = SEARCH) -> StudySpec:
    """Of which four are complete, one is pruned, and one failed before it had a score."""
    records = (
        trials.record(0, {RATE: 1e-3, EPOCHS: 2}, 0.3, 0.5),
        trials.record(1, {RATE: 1e-2, EPOCHS: 2}, 0.4, 0.8),
        trials.record(2, {RATE: 5e-4, EPOCHS: 4}, 0.95, state="pruned", reason="place 3 of 3"),
        trials.record(3, {RATE: 2e-2, EPOCHS: 4}, 0.4, 0.9),
        trials.record(4, {RATE: 9e-2, EPOCHS: 4}, state="failed", reason="the loss became nan\nat step 3"),
        trials.record(5, {RATE: 2e-3, EPOCHS: 4}, 0.4, 0.6),
    )
    return StudySpec(name="bank", search=search, trials=records)


def test_the_best_is_the_best_of_those_trained_in_full(tmp_path: Path, trials: Trials) -> None:
    """A pruned trial with a higher score at an earlier rung is none of them."""
    found, _ = run(tmp_path, six(trials))
    assert (found.best, found.score, found.values) == (3, 0.9, {RATE: 2e-2, EPOCHS: 4})
    assert [trial.state for trial in found.trials] == [
        "complete",
        "complete",
        "pruned",
        "complete",
        "failed",
        "complete",
    ]
    assert best_so_far(found) == ([0, 1, 3, 5], [0.5, 0.8, 0.9, 0.9])


@pytest.mark.parametrize("objective", ["eval.loss", "train_loss"])
def test_a_loss_is_best_when_it_is_lowest(tmp_path: Path, trials: Trials, objective: str) -> None:
    """The same trials win, since their losses are what their scores lack."""
    search = Search.model_validate({**SEARCH.model_dump(exclude_none=True), "objective": objective})
    found, _ = run(tmp_path, six(trials, search))
    assert (found.best, found.score) == (3, 0.1)
    assert best_so_far(found)[1] == [0.5, 0.2, 0.1, 0.1]


def test_the_field_that_made_the_difference_mattered_most(tmp_path: Path, trials: Trials) -> None:
    """Shares add up to one; where all complete trials are equal there is nothing to tell, and no picture."""
    found, job = run(tmp_path, six(trials))
    assert sum(found.importances.values()) == pytest.approx(1, abs=1e-4)
    assert found.importances[RATE] > found.importances[EPOCHS]
    assert (job.staging_path / "importances.png").read_bytes().startswith(b"\x89PNG")

    alone = StudySpec(name="bank", search=SEARCH, trials=six(trials).trials[:1])
    found, job = run(tmp_path, alone)
    assert found.importances == {}
    assert sorted(path.name for path in job.staging_path.iterdir()) == ["history.png", "trials.csv"]


def test_the_table_has_a_line_for_each_trial(tmp_path: Path, trials: Trials) -> None:
    """With what varied, and the score at each rung."""
    _, job = run(tmp_path, six(trials))
    with (job.staging_path / "trials.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["trial", "state", RATE, EPOCHS, "score_0", "score_1"]
    assert lines[1] == ["0", "complete", "0.001", "2", "0.3", "0.5"]
    assert lines[5] == ["4", "failed", "0.09", "4"]
    assert len(lines) == 7
    assert (job.staging_path / "history.png").read_bytes().startswith(b"\x89PNG")


def test_seconds_are_told_beside_the_result(tmp_path: Path, trials: Trials) -> None:
    """They differ between machines, and so belong into no digest."""
    _, job = run(tmp_path, six(trials))
    assert job.figures["trial_seconds"].keys() == {"0", "1", "2", "3", "4", "5"}
    assert run(tmp_path, six(trials))[0] == run(tmp_path, six(trials))[0]


def test_a_search_without_a_complete_trial_fails_with_every_reason(tmp_path: Path, trials: Trials) -> None:
    """It must not end as if there were something to release."""
    records = (
        trials.record(0, {RATE: 1e-3, EPOCHS: 2}, 0.3, state="pruned", reason="place 2 of 2"),
        TrialRecord(number=1, state="failed", reason="killed"),
    )
    with pytest.raises(DataError, match=r"(?s)none of the 2 trials .* trial 0 pruned: place 2 .* trial 1 failed: kill"):
        run(tmp_path, StudySpec(name="bank", search=SEARCH, trials=records))
