"""predictions.jsonl: what a model answered to every held-out row, and how each answer scored."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.contracts.base import Contract, canonical_json
from pipeline.contracts.specs import Scores
from pipeline.errors import IntegrityError
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.statistics import Bootstrap

FILE = "predictions.jsonl"


class Prediction(Contract):
    """One line. `prompt` and `reference` identify the row whatever the model: nothing of its template is in them."""

    row: int
    """Line of eval.jsonl, from 0."""
    prompt: str
    """The user's message; where there are more messages than that one, all of them as canonical JSON."""
    reference: str
    prediction: str
    exact_match: float
    token_f1: float
    loss: float | None
    """Mean negative log-likelihood of the reference's tokens and the end of turn, in nats; None if the row does not
    fit the model's length."""
    loss_tokens: int
    """How many tokens that is a mean over; 0 if the row does not fit."""


def write_predictions(path: Path, predictions: list[Prediction]) -> None:
    path.write_bytes(b"".join(canonical_json(prediction.model_dump()) + b"\n" for prediction in predictions))


def read_predictions(path: Path) -> list[Prediction]:
    """
    Raises:
        IntegrityError: the file is missing, or a line is no prediction.
    """
    if not path.is_file():
        raise IntegrityError(f"no predictions at {path}; run the evaluate step that makes them")
    predictions = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            predictions.append(Prediction.model_validate_json(line))
        except ValidationError as error:
            raise IntegrityError(f"{path}, line {number} is no prediction: {error}") from error
    return predictions


def metric_values(predictions: list[Prediction], metric: str) -> NDArray[np.float64]:
    """One score a row."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; there are {', '.join(METRICS)}")
    return np.array([getattr(prediction, metric) for prediction in predictions], dtype=np.float64)


def summarize(predictions: list[Prediction], bootstrap: Bootstrap) -> Scores:
    """The scores over all rows. The loss is a mean over tokens, rounded to 4 decimals."""
    tokens = sum(prediction.loss_tokens for prediction in predictions)
    total = sum((prediction.loss or 0.0) * prediction.loss_tokens for prediction in predictions)
    return Scores(
        rows=len(predictions),
        loss=round(total / tokens, 4),
        too_long_rows=sum(prediction.loss is None for prediction in predictions),
        **{name: bootstrap.mean(metric_values(predictions, name)) for name in METRICS},
    )
