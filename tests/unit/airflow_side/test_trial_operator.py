"""What a trial's task does: waits for its turn, trains, is pruned, fails with its reason, and goes on after a kill.

Real jobs (of stubs) and a real store, no Airflow: the other trials are records in a dict.
"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskDeferred

from pipeline import settings
from pipeline.contracts.study import StudyResult, TrialRecord
from pipeline.errors import SpecError
from pipeline.settings import ROOT
from slipway_airflow import search_steps
from slipway_airflow.operators import step as step_module
from slipway_airflow.operators.release_best import ReleaseBestOperator
from slipway_airflow.operators.step import StepOperator
from slipway_airflow.operators.trial import TrialOperator
from slipway_airflow.peers import Peers
from slipway_airflow.release_dag import plan_work
from slipway_airflow.upstream import Upstream
from tests.published import publish_folder
from tests.search_trials import Trials

RATE = "finetune.learning_rate"
RECIPE = """
name: searched
dataset: {uri: train.jsonl, eval_uri: eval.jsonl}
base_model: {init: {}}
finetune: {nodes: 1, epochs: 4, learning_rate: 0.01}
search:
  space: {finetune.learning_rate: {choice: [0.01, 0.001, 0.9, 0.1]}}
  sampler: grid
  parallel: 2
  pruner: {rungs: 2, factor: 2}
"""
STUB = """#!/bin/sh
export PYTHONPATH={root}
case "$3" in
plan | suggest) exec {python} "$@" ;;
*) exec {python} {root}/tests/integration/stub_training.py "$@" ;;
esac
"""


class Stage:
    """A home, a search whose plan is made, and the context of one trial's task."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "stub").mkdir()
        for environment in ("control", "model", "serve"):
            python = home / "venvs" / environment / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.write_text(STUB.format(root=ROOT, python=settings.load().python_path("control")))
            python.chmod(0o755)
        for name in ("train", "eval"):
            (home / f"{name}.jsonl").write_text(f"{name}\n")
        self.recipe = home / "recipe.yaml"
        self.recipe.write_text(RECIPE)
        self.records: dict[int, TrialRecord] = {}
        self.states: dict[int, str] = {}
        self.xcoms: dict[str, Any] = {}
        self.params = {"recipe": str(self.recipe), "dataset_uri": None, "eval_uri": None, "overrides": {}}

    def context(self, number: int) -> Any:
        def push(key: str, value: Any) -> None:
            self.records[number] = TrialRecord.model_validate(value)

        ti = SimpleNamespace(
            dag_id="search",
            run_id="run",
            task_id="trial",
            map_index=number,
            xcom_pull=lambda task_ids: self.xcoms.get(task_ids),
            xcom_push=push,
        )
        return {"ti": ti, "run_id": "run", "params": self.params}

    def plan(self) -> None:
        operator = StepOperator(step="plan", work=plan_work)
        self.xcoms["plan"] = operator.run_step(self.context(-1), plan_work(self.upstream()))

    def upstream(self) -> Upstream:
        return Upstream(self.context(-1), settings.load())

    def run(self, number: int) -> dict[str, Any]:
        return TrialOperator(task_id="trial", number=number).execute(self.context(number))

    def trained(self) -> int:
        path = self.home / "stub" / "runs"
        return path.read_text().split().count("finetune") if path.exists() else 0


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path))
    stage = Stage(tmp_path)
    monkeypatch.setenv("SLIPWAY_VENVS", str(tmp_path / "venvs"))
    monkeypatch.setattr(step_module, "WATCH_S", 120)
    monkeypatch.setattr(Peers, "states", lambda _: stage.states)
    monkeypatch.setattr(Peers, "_pull", lambda _, number: stage.records.get(number))
    stage.plan()
    return stage


def ended(stage: Stage, number: int, state: str) -> None:
    stage.states[number] = state


def test_a_round_is_trained_and_the_worse_half_is_pruned(stage: Stage) -> None:
    """Whoever is first at the rung waits for the other; the better goes on to all of its epochs, with no epochs of its
    own any more: that training is the release's. The worse ends as skipped, with its place.
    """
    with pytest.raises(TaskDeferred) as deferred:
        stage.run(0)
    assert deferred.value.trigger.numbers == [1]  # type: ignore[attr-defined]
    with pytest.raises(AirflowSkipException, match=r"pruned after 2 epochs: eval\.exact_match 0\.72.* place 2 of 2"):
        stage.run(1)
    made = stage.run(0)
    first, second = stage.records[0], stage.records[1]
    assert [rung.epochs for rung in first.rungs] == [2, 4]
    assert (first.state, first.rungs[-1].model_dump()) == ("complete", made)
    assert (second.state, len(second.rungs)) == ("pruned", 1)
    assert stage.trained() == 3

    ended(stage, 0, "success")
    ended(stage, 1, "skipped")
    stage.records.pop(0)  # Airflow forgets the record with the try
    assert stage.run(0) == made
    assert stage.records[0] == first
    assert stage.trained() == 3, "another try finds everything in the store"


def test_a_later_round_waits_for_the_earlier_and_compares_with_it(stage: Stage, tmp_path: Path) -> None:
    """Trials that ended without a record, killed for good, are not waited for."""
    with pytest.raises(TaskDeferred) as deferred:
        stage.run(3)
    assert deferred.value.trigger.numbers == [0, 1]  # type: ignore[attr-defined]
    assert deferred.value.trigger.rungs is None  # type: ignore[attr-defined]
    assert stage.records == {}
    stage.records[0] = Trials(tmp_path / "other").record(0, {RATE: 0.9}, 0.92, 0.94)
    for number in (0, 1, 2):
        ended(stage, number, "failed")
    with pytest.raises(AirflowSkipException, match=r"place 2 of 2 at this rung; .* with 0\.9200"):
        stage.run(3)
    assert stage.records[3].rungs[0].epochs == 2


def test_a_trial_that_fails_says_why_and_costs_the_others_nothing(stage: Stage, tmp_path: Path) -> None:
    """Its record, with the job's own words, is what the study reads."""
    trials = Trials(tmp_path / "other")
    for number, rate in enumerate((0.01, 0.001)):
        stage.records[number] = trials.record(number, {RATE: rate}, 0.9, 0.9)
        ended(stage, number, "success")
    with pytest.raises(AirflowFailException, match="the loss became nan"):
        stage.run(2)
    assert stage.records[2].state == "failed"
    assert "the loss became nan" in stage.records[2].reason
    assert stage.records[2].suggestion is not None


def test_rows_that_change_during_a_search_end_it(stage: Stage) -> None:
    """Scores on other rows cannot be compared."""
    (stage.home / "eval.jsonl").write_text("other\n")
    with pytest.raises(AirflowFailException, match=r"eval\.jsonl have changed since the search began"):
        stage.run(0)
    assert stage.trained() == 0


def test_the_study_tells_a_killed_trial_from_one_that_still_knows_its_end(stage: Stage, tmp_path: Path) -> None:
    """A task that Airflow gave up leaves the record of a running trial, or none."""
    trials = Trials(tmp_path / "other")
    stage.records[0] = trials.record(0, {RATE: 0.01}, 0.9, 0.9)
    stage.records[1] = trials.record(1, {RATE: 0.1}, 0.5, state="running")
    stage.states = {0: "success", 1: "failed", 2: "upstream_failed", 3: "skipped"}
    spec: Any = search_steps.study_work(stage.upstream()).spec
    assert [trial.state for trial in spec.trials] == ["complete", "failed", "failed", "failed"]
    assert "ended as upstream_failed, without a word" in spec.trials[2].reason


def test_the_best_is_released_with_the_searchs_own_overrides(stage: Stage, tmp_path: Path) -> None:
    """Once for a search, however often the task runs; not at all if the recipe was edited meanwhile, or says so."""
    stage.params["overrides"] = {"finetune.seed": 3}
    stage.plan()
    study = StudyResult(
        objective="eval.exact_match",
        maximize=True,
        best=1,
        score=0.9,
        values={RATE: 0.001},
        trials=(),
        importances={},
    )
    (tmp_path / "nothing").mkdir()
    published = publish_folder(settings.load().store_uri, "study", tmp_path / "nothing", study.model_dump(mode="json"))
    stage.xcoms["study"] = published.model_dump()
    assert search_steps.release_conf(stage.upstream()) == {
        "recipe": str(stage.recipe),
        "overrides": {"finetune.seed": 3, RATE: 0.001},
    }
    stage.recipe.write_text(RECIPE.replace("epochs: 4", "epochs: 5"))
    with pytest.raises(SpecError, match=r"was changed since the search began.*--set 'finetune\.learning_rate=0\.001'"):
        search_steps.release_conf(stage.upstream())

    stage.recipe.write_text(RECIPE + "  release: false\n")
    stage.plan()
    with pytest.raises(AirflowSkipException, match=r"search\.release is false"):
        ReleaseBestOperator(task_id="release").execute(stage.context(-1))


def test_a_recipe_without_a_search_section_is_refused_with_an_example(stage: Stage) -> None:
    """By the task that lists the trials, before the data is validated."""
    stage.recipe.write_text(RECIPE.partition("search:")[0])
    stage.plan()
    with pytest.raises(SpecError, match=r"has no `search` section.*log: \[1\.0e-4"):
        search_steps.list_trials(stage.upstream())
