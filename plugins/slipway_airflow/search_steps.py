"""What the tasks of the search DAG work on: they read the results of the tasks before from their manifests."""

from collections.abc import Callable, Mapping
from typing import Any

from pipeline import recipe_files
from pipeline.artifacts import read_manifest
from pipeline.contracts.base import ArtifactRef
from pipeline.contracts.search import Search
from pipeline.contracts.specs import PlanResult
from pipeline.contracts.study import StudyResult, StudySpec, SuggestResult, SuggestSpec, TrialRecord, Tried
from pipeline.contracts.trials import round_of, rung_overrides, score_of
from pipeline.errors import DataError, SpecError
from slipway_airflow.peers import Peers
from slipway_airflow.release_dag import (
    evaluate_work,
    finetune_work,
    overrides_of,
    plan_of,
    recipe_fields,
    validate_work,
)
from slipway_airflow.upstream import Upstream, Work

SUGGEST_DEADLINE_S = 300.0
STUDY_DEADLINE_S = 1800.0
TRIAL = "trial"
"""The mapped task."""


class History:
    """What a search knows, read from the manifests that its trials' records refer to."""

    def __init__(self, search: Search, records: Mapping[int, TrialRecord]) -> None:
        self.search = search
        self.records = records

    def scores_at(self, rung: int) -> dict[int, float]:
        """Trial to score, of the trials that were trained at the rung."""
        return {n: self._score(record, rung) for n, record in self.records.items() if len(record.rungs) > rung}

    def tried(self) -> tuple[Tried, ...]:
        """The trials, whose tasks must have ended."""
        return tuple(self._tried(record) for _, record in sorted(self.records.items()))

    def _tried(self, record: TrialRecord) -> Tried:
        values = {}
        if record.suggestion:
            values = SuggestResult.model_validate(read_manifest(record.suggestion).result).values
        scores = tuple(self._score(record, rung) for rung in range(len(record.rungs)))
        # One whose task ended without a word was killed for good.
        state = "failed" if record.state == "running" else record.state
        return Tried(number=record.number, values=values, scores=scores, state=state)

    def _score(self, record: TrialRecord, rung: int) -> float:
        made = record.rungs[rung]
        return score_of(
            self.search, read_manifest(made.finetuned), read_manifest(made.evaluated) if made.evaluated else None
        )


class TrialUpstream(Upstream):
    """What the steps of one trial read: the artifacts that the trial itself has made at its present rung."""

    def __init__(self, upstream: Upstream, number: int) -> None:
        super().__init__(upstream.context, upstream.settings)
        self.number = number
        self.search = search_of(upstream)
        self.plan = upstream.result("plan", PlanResult)
        """Of the search, as `fields` are."""
        self.fields = planned_fields(upstream)
        self.values: dict[str, Any] = {}
        self.made: dict[str, ArtifactRef] = {}
        self.share = 1.0

    @property
    def around(self) -> range:
        """The trials of the same round."""
        return round_of(self.search, self.number)

    @property
    def earlier(self) -> range:
        """The trials of the rounds before."""
        return range(self.around.start)

    @property
    def title(self) -> str:
        """The values, for people."""
        return ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.values.items())

    def begin_rung(self, share: float) -> None:
        self.share, self.made = share, {}

    def find(self, task_id: str) -> ArtifactRef | None:
        return self.made.get(task_id)

    def suggest_work(self, earlier: Mapping[int, TrialRecord]) -> Work:
        history = History(self.search, earlier).tried()
        spec = SuggestSpec(search=self.search, recipe=self.fields, number=self.number, history=history)
        return _control_work(self.plan, spec, SUGGEST_DEADLINE_S)


def search_of(upstream: Upstream) -> Search:
    """How the recipe wants to be searched.

    Raises:
        SpecError: it does not say.
    """
    recipe = upstream.result("plan", PlanResult).recipe
    if recipe.search is None:
        raise SpecError(
            f"the recipe {recipe.name} has no `search` section, so nothing is known to vary; add one, such as"
            " `search: {space: {finetune.learning_rate: {log: [1.0e-4, 1.0e-2]}}}`"
        )
    return recipe.search


def planned_fields(upstream: Upstream) -> dict[str, Any]:
    """The recipe's fields as the user gave them when the search began."""
    fields: dict[str, Any] = read_manifest(upstream.ref("plan")).spec["recipe"]
    return fields


def list_trials(upstream: Upstream) -> list[int]:
    return list(range(search_of(upstream).num_trials))


def rung_steps(search: Search) -> list[tuple[str, Callable[[TrialUpstream], Work]]]:
    """The steps of a release that a trial needs, in order."""
    steps: list[tuple[str, Callable[[TrialUpstream], Work]]] = [
        ("plan", trial_plan_work),
        ("validate", trial_validate_work),
        ("finetune", finetune_work),
    ]
    return steps if search.objective == "train_loss" else [*steps, ("evaluate", evaluate_work)]


def trial_plan_work(upstream: TrialUpstream) -> Work:
    """A plan of its own for every trial: values may change what is pinned, or how the model is spread."""
    fields = {name: value for name, value in upstream.fields.items() if name != "search"}
    applied = recipe_files.apply_overrides(fields, upstream.values)
    overrides = rung_overrides(applied, upstream.values, upstream.share)
    return plan_of(recipe_files.apply_overrides(fields, overrides), upstream.run_id)


def trial_validate_work(upstream: TrialUpstream) -> Work:
    """The search's own validation, unless the trial trains on other rows or from another tokenizer.

    Raises:
        DataError: the data has changed since the search began.
    """
    now, before = upstream.result("plan", PlanResult), upstream.plan
    same_train = now.train.digest == before.train.digest or "dataset.uri" in upstream.values
    if not same_train or now.eval.digest != before.eval.digest:
        raise DataError(
            f"the rows of {now.train.uri if not same_train else now.eval.uri} have changed since the search began, so"
            " its trials cannot be compared: search again"
        )
    return validate_work(upstream)


def study_work(upstream: Upstream) -> Work:
    search, plan = search_of(upstream), upstream.result("plan", PlanResult)
    peers = Peers(upstream.context["ti"].dag_id, upstream.run_id, TRIAL)
    records, states = peers.records(range(search.num_trials)), peers.states()
    trials = tuple(
        _ended(records.get(number, TrialRecord(number=number)), states.get(number))
        for number in range(search.num_trials)
    )
    return _control_work(plan, StudySpec(name=plan.recipe.name, search=search, trials=trials), STUDY_DEADLINE_S)


def _ended(record: TrialRecord, state: str | None) -> TrialRecord:
    """The record of a trial whose task has ended, perhaps without a word."""
    if record.state != "running":
        return record
    return record.model_copy(
        update={"state": "failed", "reason": f"its task ended as {state}, without a word: see the task's log"}
    )


def release_conf(upstream: Upstream) -> dict[str, Any]:
    """What releases the best trial: the search's own recipe and overrides, with the best values.

    Raises:
        SpecError: the recipe was edited meanwhile, so that its release would not be the best trial.
    """
    best = upstream.result("study", StudyResult)
    if recipe_fields(upstream) != planned_fields(upstream):
        values = " ".join(f"--set '{key}={value}'" for key, value in best.values.items())
        raise SpecError(
            f"the recipe {upstream.params['recipe']} was changed since the search began, so that its release would be"
            f" another model than trial {best.best}; undo the change and clear this task, or release it as it is now:"
            f" slipway release {upstream.params['recipe']} {values}"
        )
    return {"recipe": upstream.params["recipe"], "overrides": {**overrides_of(upstream.params), **best.values}}


def _control_work(plan: PlanResult, spec: SuggestSpec | StudySpec, deadline_s: float) -> Work:
    return Work(
        spec=spec,
        deadline_s=deadline_s,
        release=plan.recipe.name,
        resources=plan.recipe.resources.control,
        resources_field="resources.control",
    )
