"""Finished trials in a store, for tests of what a search makes of them."""

from pathlib import Path
from typing import Any

from pipeline.contracts.base import ArtifactRef
from pipeline.contracts.specs import Estimate, EvaluateResult, FinetuneResult, Scores
from pipeline.contracts.study import SuggestResult, TrialRecord, TrialRung
from tests.published import publish_folder


class Trials:
    """Publishes what trials would have made."""

    def __init__(self, store_path: Path) -> None:
        self.store_uri = store_path.as_uri()
        self._empty = store_path.with_name(f"{store_path.name}-empty")
        self._empty.mkdir(parents=True)

    def record(self, number: int, values: dict[str, Any], *scores: float, **more: Any) -> TrialRecord:
        """A trial that had `scores` at its rungs, in exact match and (1 − score) in loss."""
        suggestion = self._publish("suggest", SuggestResult(values=values, source="by hand"))
        rungs = tuple(self._rung(score, epochs) for epochs, score in enumerate(scores, start=1))
        return TrialRecord(number=number, suggestion=suggestion, rungs=rungs, **{"state": "complete", **more})

    def _rung(self, score: float, epochs: float) -> TrialRung:
        loss = round(1 - score, 6)
        estimate = Estimate(value=score, low=0.0, high=1.0)
        scores = Scores(rows=50, loss=loss, exact_match=estimate, token_f1=estimate)
        trained = FinetuneResult(steps=1, parameters=1, final_train_loss=loss, train_tokens=1)
        return TrialRung(
            epochs=epochs,
            finetuned=self._publish("finetune", trained),
            evaluated=self._publish("evaluate", EvaluateResult(scores=scores)),
        )

    def _publish(self, step: str, result: SuggestResult | FinetuneResult | EvaluateResult) -> ArtifactRef:
        return publish_folder(self.store_uri, step, self._empty, result.model_dump(mode="json"))
