"""A search in MLflow: one run for the search, and below it a run for each trial, with the values that it tried."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.contracts.base import sha256_hex
from pipeline.contracts.study import StudyResult, StudySpec
from pipeline.job import Job
from pipeline.registry.runs import MlflowRun, RunLogger, open_run
from pipeline.search.findings import Trial
from pipeline.search.plots import best_so_far

PARENT_TAG, NAME_TAG = "mlflow.parentRunId", "mlflow.runName"


def log_study(run: RunLogger, spec: StudySpec, result: StudyResult, folder: Path) -> None:
    """The search's own run: how it searched, the best values, the best score after each trial, the pictures."""
    search = spec.search
    run.set_tags({NAME_TAG: f"search {spec.name}", "slipway.best_trial": result.best})
    run.log_params(
        {
            **{name: getattr(search, name) for name in ("objective", "sampler", "trials", "parallel", "seed")},
            "pruner": search.pruner.model_dump() if search.pruner else "none",
            **{f"space.{key}": space.model_dump_json(exclude_none=True) for key, space in search.space.items()},
            **{f"best.{key}": value for key, value in result.values.items()},
        }
    )
    states = [trial.state for trial in result.trials]
    run.log_metrics({f"trials/{state}": states.count(state) for state in ("complete", "pruned", "failed")})
    run.log_metrics({f"importance/{key}": value for key, value in result.importances.items()})
    for number, score in zip(*best_so_far(result), strict=True):
        run.log_metrics({"best_so_far": score}, step=number)
    run.log_artifacts(folder, "search")


def log_trial(job: Job, parent: MlflowRun, spec: StudySpec, trial: Trial) -> None:
    """A trial's run, which is found again when the step is repeated."""
    summary = trial.summary
    child = replace(job, step="trial", key=sha256_hex(f"{job.key}/{summary.number}".encode()), figures={})
    with open_run(child, parent.tracking_uri) as run:
        run.set_tags(
            {
                PARENT_TAG: parent.run_id,
                NAME_TAG: f"trial {summary.number}",
                "slipway.trial_state": summary.state,
                **({"slipway.trial_reason": summary.reason} if summary.reason else {}),
                **({"slipway.training_runs": ", ".join(trial.run_ids)} if trial.run_ids else {}),
            }
        )
        run.log_params(summary.values)
        for rung, (epochs, score) in enumerate(zip(summary.epochs, summary.scores, strict=True)):
            run.log_metrics({spec.search.objective: score, "epochs": epochs}, step=rung)
        run.log_metrics({"seconds": trial.seconds})


def log_trials(job: Job, parent: RunLogger, spec: StudySpec, trials: Sequence[Trial]) -> None:
    """Nothing where nobody keeps runs."""
    if isinstance(parent, MlflowRun):
        for trial in trials:
            log_trial(job, parent, spec, trial)
