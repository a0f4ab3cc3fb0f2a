"""The rules of a search: which trials run together, for how many epochs, which of them go on, and what a score is.

Each function is pure. Used by the search DAG, as `release` is by the release DAG.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.contracts.finetune import Finetune
from pipeline.contracts.manifest import Manifest
from pipeline.contracts.search import Search, value_at
from pipeline.contracts.specs import EvaluateResult, FinetuneResult

EPOCHS = "finetune.epochs"


def round_of(search: Search, number: int) -> range:
    """The trials that run together with trial `number`, itself included."""
    first = number - number % search.parallel
    return range(first, min(first + search.parallel, search.num_trials))


def rung_shares(search: Search) -> tuple[float, ...]:
    """The part of a trial's epochs that it is trained for at each rung, rising to 1."""
    if search.pruner is None:
        return (1.0,)
    return tuple(1 / search.pruner.factor**rung for rung in reversed(range(search.pruner.rungs)))


def rung_overrides(fields: Mapping[str, Any], values: Mapping[str, Any], share: float) -> dict[str, Any]:
    """What a trial changes in the recipe at a rung. In full (`share` 1) that is nothing but its values, so that its
    training is the release's own.

    Args:
        fields: the recipe's, with the values applied.
    """
    if share == 1:
        return dict(values)
    epochs = value_at(fields, EPOCHS) or Finetune.model_fields["epochs"].default
    return {**values, EPOCHS: round(float(epochs) * share, 6)}


def score_of(search: Search, finetuned: Manifest, evaluated: Manifest | None) -> float:
    """The objective of one training."""
    if search.objective == "train_loss" or evaluated is None:
        return FinetuneResult.model_validate(finetuned.result).final_train_loss
    scores = EvaluateResult.model_validate(evaluated.result).scores
    name = search.objective.partition(".")[2]
    return scores.loss if name == "loss" else scores.primary(name).value


def ranked(search: Search, scores: Mapping[int, float]) -> list[int]:
    """The trials by their scores, the best first; of two that are as good, the one that came first."""
    sign = -1 if search.maximize else 1
    return sorted(scores, key=lambda number: (sign * scores[number], number))


def going_on(search: Search, scores: Mapping[int, float]) -> list[int]:
    """The trials that belong to the best at a rung: one in `factor` of all that have a score there, and at least one.

    The rule is that of asynchronous successive halving; here all trials of a round have their scores when it is asked,
    so the answer does not depend on which of them was quicker.

    Args:
        scores: trial to score at the rung, of this round and those before.
    """
    factor = search.pruner.factor if search.pruner else 1
    return ranked(search, scores)[: max(1, len(scores) // factor)]


def pruned_because(search: Search, number: int, scores: Mapping[int, float]) -> str:
    """Why a trial does not go on; "" if it does."""
    best = going_on(search, scores)
    if number in best:
        return ""
    place = ranked(search, scores).index(number) + 1
    return (
        f"{search.objective} {scores[number]:.4f} is place {place} of {len(scores)} at this rung; the first"
        f" {len(best)} go on, the last of them with {scores[best[-1]]:.4f}"
    )


def duration_s(manifests: Iterable[Manifest | None]) -> float:
    return sum(manifest.duration_s for manifest in manifests if manifest)
