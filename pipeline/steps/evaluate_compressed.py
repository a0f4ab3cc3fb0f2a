"""evaluate_compressed: walks down the compression ladder and chooses the first form that keeps enough of the score.

Reads the folders of compress, the model of finetune, the predictions of evaluate, and eval.jsonl of validate. Writes
predictions.jsonl of the chosen form. Runs in the serve environment.
"""

from pipeline import artifacts
from pipeline.contracts.base import ModelRef
from pipeline.contracts.specs import CompressResult, EvaluateCompressedResult, EvaluateCompressedSpec, Rung, Trial
from pipeline.errors import IntegrityError
from pipeline.evaluation.ladder import judge, recovery, refuse, unquantized
from pipeline.evaluation.predictions import FILE, Prediction, read_predictions, summarize, write_predictions
from pipeline.evaluation.scoring import bootstrap_of, score_model
from pipeline.job import Job


def run(spec: EvaluateCompressedSpec, job: Job) -> EvaluateCompressedResult:
    job.seeds["bootstrap"] = spec.settings.seed
    compressed = CompressResult.model_validate(artifacts.read_manifest(spec.compressed).result)
    baseline = read_predictions(job.fetch(spec.baseline) / FILE)
    baseline_scores = summarize(baseline, bootstrap_of(spec.settings))
    trials: list[Trial] = []
    for scheme in spec.ladder:
        if scheme == "none":
            rung = Rung(scheme="none", path=spec.model.path, size_bytes=compressed.baseline_size_bytes)
            predictions, trial = baseline, unquantized(baseline_scores, trials)
        else:
            rung = find_rung(compressed, scheme)
            predictions = score_rung(rung, spec, job)
            trial = judge(
                scheme,
                summarize(predictions, bootstrap_of(spec.settings)),
                recovery(
                    predictions, baseline, metric=spec.settings.primary_metric, bootstrap=bootstrap_of(spec.settings)
                ),
                baseline=baseline_scores,
                metric=spec.settings.primary_metric,
                min_recovery=spec.min_recovery,
            )
        trials.append(trial)
        job.say(trial.reason)
        if trial.passed:
            write_predictions(job.staging_path / FILE, predictions)
            return EvaluateCompressedResult(
                scheme=scheme,
                path=rung.path,
                size_bytes=rung.size_bytes,
                scores=trial.scores,
                baseline=baseline_scores,
                trials=tuple(trials),
                reason=". ".join(trial.reason for trial in trials),
            )
    raise refuse(trials)


def find_rung(compressed: CompressResult, scheme: str) -> Rung:
    for rung in compressed.rungs:
        if rung.scheme == scheme:
            return rung
    made = [rung.scheme for rung in compressed.rungs]
    raise IntegrityError(f"the compress artifact holds {made}, not {scheme!r}; run compress again with this ladder")


def score_rung(rung: Rung, spec: EvaluateCompressedSpec, job: Job) -> list[Prediction]:
    return score_model(
        job.fetch_model(ModelRef(artifact=spec.compressed, path=rung.path)),
        job.fetch(spec.dataset),
        settings=spec.settings,
        max_model_len=spec.max_model_len,
        job=job,
        label=rung.scheme,
    )
