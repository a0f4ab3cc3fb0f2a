"""study: says what the trials of a hyperparameter search came to, and which is the best.

Reads the manifests of the trials. Writes trials.csv and pictures, and the search's runs in MLflow: one for the search,
and one below it for each trial.

Raises:
    DataError: no trial was completed.
    TransientError: MLflow or the store does not answer.
"""

from pipeline.contracts.study import StudyResult, StudySpec
from pipeline.job import Job
from pipeline.registry.runs import step_run
from pipeline.search.findings import conclude, read_trial, write_table
from pipeline.search.plots import plot_history, plot_importances
from pipeline.search.tracking import log_study, log_trials


def run(spec: StudySpec, job: Job) -> StudyResult:
    trials = [read_trial(spec.search, record) for record in spec.trials]
    result = conclude(spec, trials)
    write_table(job.staging_path / "trials.csv", spec.search, result.trials)
    plot_history(result, job.staging_path / "history.png")
    if result.importances:
        plot_importances(result, job.staging_path / "importances.png")
    else:
        job.say("too few complete trials with different scores to say which fields mattered")
    job.seeds["search"] = spec.search.seed
    job.figures["trial_seconds"] = {str(trial.summary.number): round(trial.seconds, 1) for trial in trials}
    with step_run(job) as mlflow_run:
        log_study(mlflow_run, spec, result, job.staging_path)
        log_trials(job, mlflow_run, spec, trials)
    job.say(f"best of {len(trials)} trials: trial {result.best} with {result.objective} {result.score:.4f}")
    return result
