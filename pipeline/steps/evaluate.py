"""evaluate: scores the fine-tuned model on the held-out rows with the engine that will serve it.

Reads the model folder of finetune and eval.jsonl of validate. Writes predictions.jsonl. Runs in the serve environment.
"""

from pipeline.contracts.specs import EvaluateResult, EvaluateSpec
from pipeline.evaluation.predictions import FILE, summarize, write_predictions
from pipeline.evaluation.scoring import bootstrap_of, describe, score_model
from pipeline.job import Job


def run(spec: EvaluateSpec, job: Job) -> EvaluateResult:
    job.seeds["bootstrap"] = spec.settings.seed
    predictions = score_model(
        job.fetch_model(spec.model),
        job.fetch(spec.dataset),
        settings=spec.settings,
        max_model_len=spec.max_model_len,
        job=job,
        label="baseline",
    )
    write_predictions(job.staging_path / FILE, predictions)
    scores = summarize(predictions, bootstrap_of(spec.settings))
    job.say(describe(scores))
    return EvaluateResult(scores=scores)
