"""Scores one model on the held-out rows: its answers, their scores, and the loss of the references."""

import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.contracts.recipe import Evaluate
from pipeline.contracts.specs import Estimate, Scores
from pipeline.errors import DataError
from pipeline.evaluation.engine import Answer, open_engine
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.predictions import Prediction
from pipeline.evaluation.rows import Row, read_rows, render_rows
from pipeline.evaluation.statistics import Bootstrap
from pipeline.job import Job

CHUNK_ROWS = 256
"""Given to the engine at once; a progress line follows each."""
LOSS_DECIMALS = 4
"""Finer digits are noise of the number format that the engine computes in."""
EVAL_FILE = "eval.jsonl"


def bootstrap_of(settings: Evaluate) -> Bootstrap:
    return Bootstrap(samples=settings.bootstrap_samples, confidence=settings.confidence, seed=settings.seed)


def score_model(
    model_path: Path, dataset_path: Path, *, settings: Evaluate, max_model_len: int, job: Job, label: str
) -> list[Prediction]:
    """What the model answers to every held-out row, in the order of the rows.

    A row whose prompt and reference do not fit `max_model_len` scores 0, since the model as served cannot give that
    answer; it has no loss, and it is counted and said.

    Args:
        model_path: a folder in Hugging Face form.
        dataset_path: the validate step's artifact.
        label: names the model in progress lines and figures.

    Raises:
        DataError: no row fits.
    """
    rows = load_rows(model_path, dataset_path, settings.max_rows)
    fitting = [row for row in rows if row.fits(max_model_len)]
    say_what_cannot_score(rows, settings=settings, max_model_len=max_model_len, job=job)
    started = time.monotonic()
    with open_engine(model_path, max_model_len=max_model_len, cache_path=job.settings.cache_path) as engine:
        ready = time.monotonic()
        job.say(f"{label}: the engine is up after {ready - started:.1f} s")
        answers: dict[int, Answer] = {}
        for chunk in _chunks(fitting):
            answers |= dict(
                zip((row.number for row in chunk), engine.answer(chunk, settings.max_new_tokens), strict=True)
            )
            job.progress(len(answers), len(fitting), model=label)
    generated = sum(answer.num_tokens for answer in answers.values())
    job.figures[label] = {
        "engine_start_s": round(ready - started, 2),
        "generated_tokens": generated,
        "generated_tokens_per_s": round(generated / (time.monotonic() - ready), 1),
        "rows_per_s": round(len(answers) / (time.monotonic() - ready), 1),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    return [_prediction(row, answers.get(row.number)) for row in rows]


def load_rows(model_path: Path, dataset_path: Path, max_rows: int | None) -> list[Row]:
    """The held-out rows in the model's tokens."""
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    ends: Any = tokenizer.eos_token_id
    if (model_path / "generation_config.json").is_file():
        ends = GenerationConfig.from_pretrained(model_path).eos_token_id or ends
    end_ids = set(ends if isinstance(ends, list) else [ends])
    return render_rows(read_rows(dataset_path / EVAL_FILE, max_rows), tokenizer, end_ids)


def say_what_cannot_score(rows: list[Row], *, settings: Evaluate, max_model_len: int, job: Job) -> None:
    """
    Raises:
        DataError: no row fits.
    """
    too_long = [row.number for row in rows if not row.fits(max_model_len)]
    if len(too_long) == len(rows):
        raise DataError(
            f"none of the {len(rows)} held-out rows fits max_model_len {max_model_len} with its reference answer;"
            " raise rollout.max_model_len, or shorten the rows"
        )
    if too_long:
        job.say(
            f"{len(too_long)} of {len(rows)} held-out rows do not fit max_model_len {max_model_len} with their"
            f" reference and score 0: rows {_some(too_long)}"
        )
    cut = [row.number for row in rows if len(row.answer_ids) > settings.max_new_tokens]
    if cut:
        job.say(
            f"{len(cut)} of {len(rows)} references are longer than max_new_tokens {settings.max_new_tokens}, so that no"
            f" answer can match them: rows {_some(cut)}"
        )


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (" …" if len(numbers) > 10 else "")


def _chunks(rows: list[Row]) -> Iterator[list[Row]]:
    for start in range(0, len(rows), CHUNK_ROWS):
        yield rows[start : start + CHUNK_ROWS]


def _prediction(row: Row, answer: Answer | None) -> Prediction:
    text = answer.text if answer else ""
    logprobs = answer.reference_logprobs if answer else []
    scores = {name: metric(text, row.reference) if answer else 0.0 for name, metric in METRICS.items()}
    return Prediction(
        row=row.number,
        prompt=row.prompt,
        reference=row.reference,
        prediction=text,
        loss=round(-sum(logprobs) / len(logprobs), LOSS_DECIMALS) if logprobs else None,
        loss_tokens=len(logprobs),
        exact_match=scores["exact_match"],
        token_f1=round(scores["token_f1"], 6),
    )


def describe(scores: Scores) -> str:
    """The scores in a line."""
    figures = [f"{name} {interval(scores.primary(name))}" for name in METRICS]
    return f"{scores.rows} rows: {', '.join(figures)}, loss {scores.loss:.4f}"


def interval(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"
