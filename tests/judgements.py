"""What a rollout sees of its canary at one moment, for tests of whoever reads it."""

from typing import Any

from pipeline.fleet.analysis.comparison import Comparison
from pipeline.fleet.analysis.live import Judgement

COMPARISON = Comparison(
    measure="time to first token, median",
    unit="ms",
    canary=46.0,
    stable=41.0,
    low=2.5,
    high=7.5,
    margin=10.0,
    verdict="not worse",
    num_canary=40,
    num_stable=120,
)


def judgement(model: str, generation: int, **values: Any) -> Judgement:
    """The first step of version 2, beside version 1, with a quarter of the traffic; unless `values` differ."""
    step = {"version": "2", "stable_version": "1", "step": 0, "weight": 25, "began_at": 1.0, "updated_at": 2.0}
    seen = {"client_requests": 31, "probes": 9, "finding": "undecided", "reason": "", "comparisons": (COMPARISON,)}
    return Judgement.model_validate({"model": model, "generation": generation, **step, **seen, **values})
