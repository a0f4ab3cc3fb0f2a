"""What the trials of a search came to: read from the manifests that their records refer to."""

import csv
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.importance import PedAnovaImportanceEvaluator

from pipeline import artifacts
from pipeline.contracts.base import ArtifactRef, Contract
from pipeline.contracts.manifest import Manifest
from pipeline.contracts.search import Search
from pipeline.contracts.study import StudyResult, StudySpec, SuggestResult, TrialRecord, TrialSummary, Tried
from pipeline.contracts.trials import duration_s, ranked, score_of
from pipeline.errors import DataError
from pipeline.search.sampling import study_of


class Trial(Contract):
    """A trial with what its trainings took."""

    summary: TrialSummary
    seconds: float
    """Of all its trainings and evaluations, whoever ran them first."""
    run_ids: tuple[str, ...]
    """Of its trainings in MLflow."""


def read_trial(search: Search, record: TrialRecord) -> Trial:
    """What a record refers to.

    Raises:
        IntegrityError: a manifest is missing or was altered.
    """
    values = {}
    if record.suggestion is not None:
        values = SuggestResult.model_validate(artifacts.read_manifest(record.suggestion).result).values
    made = [(artifacts.read_manifest(rung.finetuned), _read(rung.evaluated)) for rung in record.rungs]
    return Trial(
        summary=TrialSummary(
            number=record.number,
            values=values,
            scores=tuple(score_of(search, *manifests) for manifests in made),
            state=record.state,
            epochs=tuple(rung.epochs for rung in record.rungs),
            reason=record.reason,
        ),
        seconds=sum(duration_s(manifests) for manifests in made),
        run_ids=tuple(str(run_id) for trained, _ in made if (run_id := trained.figures.get("mlflow_run_id"))),
    )


def conclude(spec: StudySpec, trials: Sequence[Trial]) -> StudyResult:
    """The best trial, and what mattered.

    Raises:
        DataError: no trial was completed.
    """
    search = spec.search
    summaries = tuple(trial.summary for trial in trials)
    complete = {summary.number: summary.scores[-1] for summary in summaries if summary.state == "complete"}
    if not complete:
        reasons = "\n".join(f"  trial {trial.number} {trial.state}: {trial.reason}" for trial in summaries)
        raise DataError(
            f"none of the {len(summaries)} trials was completed, so there is no best one; see why, correct search.space"
            f" or the recipe, and search again:\n{reasons}"
        )
    best = next(summary for summary in summaries if summary.number == ranked(search, complete)[0])
    return StudyResult(
        objective=search.objective,
        maximize=search.maximize,
        best=best.number,
        score=best.scores[-1],
        values=best.values,
        trials=summaries,
        importances=importances(search, summaries),
    )


def importances(search: Search, trials: Sequence[Tried]) -> dict[str, float]:
    """How much each field mattered, adding up to 1; empty where too few trials, or too equal ones, tell anything."""
    complete = [trial for trial in trials if trial.state == "complete"]
    if len({trial.scores[-1] for trial in complete}) < 2:
        return {}
    found = optuna.importance.get_param_importances(study_of(search, complete), evaluator=PedAnovaImportanceEvaluator())
    return {key: round(float(value), 6) for key, value in found.items()}


def write_table(path: Path, search: Search, trials: Sequence[Tried]) -> None:
    """trials.csv: a line for each trial, a column for each field that varies."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", *search.space, *(f"score_{rung}" for rung in range(_num_rungs(search)))])
        for trial in trials:
            writer.writerow(
                [trial.number, trial.state, *(trial.values.get(key, "") for key in search.space), *trial.scores]
            )


def _num_rungs(search: Search) -> int:
    return search.pruner.rungs if search.pruner else 1


def _read(ref: ArtifactRef | None) -> Manifest | None:
    return None if ref is None else artifacts.read_manifest(ref)
