"""Is the canary good enough? Compares what was seen of both versions, and concludes.

Every comparison is an interval that stays valid however often one looks (`sequences`). The canary is worse when a whole
interval lies beyond its margin, and not worse when none of it does. The chance that a rollout rolls back a version that
keeps within every margin is at most `FALSE_ALARMS`, over all comparisons, steps and repetitions together:

- the k-th step that a rollout watches gets 1/(k(k + 1)) of it, which adds up to 1 however many steps or repetitions
  there are, and gives most to the first steps, where a bad version is best caught;
- a step's share is divided evenly among the comparisons that it may make (`NUM_COMPARISONS`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.contracts.rollout import OnUndecided, Rollout
from pipeline.fleet.analysis.comparison import Comparison, Verdict
from pipeline.fleet.analysis.evidence import MEASURES, Evidence, Measure
from pipeline.fleet.analysis.sequences import Sample, rate_interval

FALSE_ALARMS = 0.05
QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}
NUM_COMPARISONS = 19
"""Errors against the limit and against the stable version, refused probes, the score, and three quantiles each of what
clients and probes see: time to first token and end-to-end latency of both, inter-token latency of probes alone."""
FLOORS_MS: dict[Measure, float] = {"time to first token": 50, "inter-token latency": 20, "end-to-end latency": 50}
"""A difference below never counts, since a ratio of two very short times is mostly noise."""
MIN_TIMES = 5
"""Fewer answers on either side say nothing about a median."""

Finding = Literal["healthy", "unhealthy", "undecided"]


def alpha_of(watch: int) -> float:
    """Each comparison's share of the false alarms in the `watch`-th step that a rollout watches, from 1."""
    return FALSE_ALARMS / (watch * (watch + 1)) / NUM_COMPARISONS


def compare(seen: Evidence, limits: Rollout, *, alpha: float) -> tuple[Comparison, ...]:
    """All comparisons that can be made now. Each errs with a chance of at most `alpha`, ever."""
    found = [_errors(seen, limits, alpha)]
    if seen.has_stable:
        found.append(_rise(seen, limits, alpha))
    if seen.refusals:
        found.append(_refusals(seen, limits, alpha))
    for measure in MEASURES:
        found += _times(seen, measure, limits, alpha)
    if seen.score is not None and seen.score.total:
        found.append(_score(seen, limits))
    return tuple(found)


def _errors(seen: Evidence, limits: Rollout, alpha: float) -> Comparison:
    total = seen.num_requests
    low, high = rate_interval(seen.errors, total, alpha=alpha)
    return Comparison(
        measure="error rate",
        unit="points",
        canary=100 * seen.errors / total if total else None,
        low=100 * low,
        high=100 * high,
        margin=100 * limits.max_error_rate,
        verdict=_verdict(low, high, limits.max_error_rate, limits.max_error_rate),
        num_canary=total,
        limit="max_error_rate",
    )


def _rise(seen: Evidence, limits: Rollout, alpha: float) -> Comparison:
    total, stable_total = seen.num_requests, max(seen.stable_requests, seen.stable_errors)
    canary = rate_interval(seen.errors, total, alpha=alpha / 2)
    stable = rate_interval(seen.stable_errors, stable_total, alpha=alpha / 2)
    low, high, margin = canary[0] - stable[1], canary[1] - stable[0], limits.max_error_rate_rise
    return Comparison(
        measure="error rate against stable",
        unit="points",
        canary=100 * seen.errors / total if total else None,
        stable=100 * seen.stable_errors / stable_total if stable_total else None,
        low=100 * low,
        high=100 * high,
        margin=100 * margin,
        verdict=_verdict(low, high, margin, margin),
        num_canary=total,
        num_stable=stable_total,
        limit="max_error_rate_rise",
    )


def _refusals(seen: Evidence, limits: Rollout, alpha: float) -> Comparison:
    low, high = rate_interval(seen.refusals, seen.probes, alpha=alpha)
    return Comparison(
        measure="refused probes",
        unit="points",
        canary=100 * seen.refusals / seen.probes,
        low=100 * low,
        high=100 * high,
        margin=100 * limits.max_error_rate,
        verdict=_verdict(low, high, limits.max_error_rate, limits.max_error_rate),
        num_canary=seen.probes,
        limit="max_error_rate",
    )


def _times(seen: Evidence, measure: Measure, limits: Rollout, alpha: float) -> Iterator[Comparison]:
    source = seen.source(measure, wanted=max(limits.min_requests, MIN_TIMES))
    if source is None or not seen.has_stable:
        return
    sides = seen.sample("canary", source, measure), seen.sample("stable", source, measure)
    name, ratio = _ratio(measure, limits)
    for word, level in QUANTILES.items():
        yield _quantile(
            *sides,
            level=level,
            allowed=_Allowed(ratio, FLOORS_MS[measure]),
            alpha=alpha,
            measure=f"{measure}, {word}" + (" (probes)" if source == "probes" else ""),
            limit=name,
        )


def _ratio(measure: Measure, limits: Rollout) -> tuple[str, float]:
    """The recipe's field that limits a measure, and its value."""
    own = {
        "time to first token": ("max_ttft_ratio", limits.max_ttft_ratio),
        "inter-token latency": ("max_itl_ratio", limits.max_itl_ratio),
    }
    name, ratio = own.get(measure, ("", None))
    return (name, ratio) if ratio is not None else ("max_latency_ratio", limits.max_latency_ratio)


@dataclass(frozen=True)
class _Allowed:
    """How long the canary may take."""

    ratio: float
    floor_ms: float

    def beside(self, stable_ms: float) -> float:
        """Milliseconds, where the stable version takes `stable_ms`."""
        return max(self.ratio * stable_ms, stable_ms + self.floor_ms)


def _quantile(
    canary: Sample, stable: Sample, *, level: float, allowed: _Allowed, alpha: float, measure: str, limit: str
) -> Comparison:
    """Each side's quantile has an interval of its own, so that it does not matter who had how many answers when."""
    low, high = canary.interval(level, alpha=alpha / 2)
    stable_low, stable_high = stable.interval(level, alpha=alpha / 2)
    verdict: Verdict = "undecided"
    if low > allowed.beside(stable_high):
        verdict = "worse"
    elif high <= allowed.beside(max(stable_low, 0.0)):
        verdict = "not worse"
    stable_ms = stable.quantile(level)
    return Comparison(
        measure=measure,
        unit="ms",
        canary=canary.quantile(level),
        stable=stable_ms,
        low=_end(low - stable_high),
        high=_end(high - stable_low),
        margin=allowed.beside(stable_ms) - stable_ms,
        verdict=verdict,
        num_canary=len(canary),
        num_stable=len(stable),
        limit=limit,
    )


def _score(seen: Evidence, limits: Rollout) -> Comparison:
    """Of golden prompts, in points of a hundred; the mean difference alone is known."""
    assert seen.score is not None
    low, high = seen.score.interval()
    margin = -limits.max_score_drop
    return Comparison(
        measure="score against stable, golden prompts",
        unit="points",
        canary=100 * (seen.score.canary_sum / seen.score.total),
        stable=100 * (seen.score.stable_sum / seen.score.total),
        low=100 * low,
        high=100 * high,
        margin=100 * margin,
        verdict="worse" if high < margin else "not worse" if low >= margin else "undecided",
        num_canary=seen.score.total,
        num_stable=seen.score.total,
        limit="max_score_drop",
    )


def _verdict(low: float, high: float, worse_above: float, not_worse_to: float) -> Verdict:
    return "worse" if low > worse_above else "not worse" if high <= not_worse_to else "undecided"


def _end(value: float) -> float | None:
    return value if math.isfinite(value) else None


# --- conclusions ---------------------------------------------------------------------------------------------------


def alarm(comparisons: tuple[Comparison, ...]) -> str | None:
    """Why the canary must go at once; None if nothing was shown."""
    worse = [found for found in comparisons if found.verdict == "worse"]
    return "; ".join(f"{found.describe()}, beyond {found.limit}" for found in worse) or None


def all_clear(comparisons: tuple[Comparison, ...]) -> bool:
    """Whether the canary has been shown not worse by what can be shown in reasonable time: errors and medians.

    Tails and scores take thousands of answers; they may raise an alarm, but a step does not wait for them.
    """
    needed = [found for found in comparisons if _is_needed(found)]
    return all(found.verdict == "not worse" for found in needed)


def doubts(comparisons: tuple[Comparison, ...]) -> tuple[Comparison, ...]:
    """What looks worse but is not shown to be: errors, refusals and medians whose figure lies beyond the margin."""
    return tuple(
        found
        for found in comparisons
        if _is_needed(found)
        and found.verdict == "undecided"
        and min(found.num_canary, found.num_stable or found.num_canary) >= (MIN_TIMES if found.unit == "ms" else 1)
        and found.canary is not None
        and found.canary - (found.stable or 0.0) > found.margin
    )


def _is_needed(found: Comparison) -> bool:
    return found.limit != "max_score_drop" and not found.measure.removesuffix(" (probes)").endswith((", p90", ", p99"))


def conclude(comparisons: tuple[Comparison, ...], *, policy: OnUndecided) -> tuple[Finding, str]:
    """When the time is up and nothing was shown: what the recipe's `on_undecided` makes of it."""
    open_ones = [found for found in comparisons if found.verdict == "undecided"]
    doubted = doubts(comparisons)
    what = f"{len(open_ones)} of {len(comparisons)} comparisons are undecided"
    if policy == "roll_back" and open_ones:
        return "unhealthy", f"{what}, and on_undecided is roll_back: {open_ones[0].describe()}"
    if policy == "by_figures" and doubted:
        figures = "; ".join(f"{found.describe()}, beyond {found.limit}" for found in doubted)
        return "unhealthy", f"{figures}, not certain after all that was asked, and on_undecided is by_figures"
    return "healthy", f"{summary(comparisons)}; {what}, and on_undecided is {policy}" if open_ones else summary(
        comparisons
    )


def summary(comparisons: tuple[Comparison, ...]) -> str:
    """The errors, the medians and the score in one line, without their intervals."""
    return "; ".join(_briefly(found) for found in comparisons if _is_told(found)) or "nothing was seen"


def _is_told(found: Comparison) -> bool:
    return found.canary is not None and (found.limit == "max_score_drop" or _is_needed(found))


def _briefly(found: Comparison) -> str:
    sides = " against ".join(f"{side:.3g}" for side in (found.canary, found.stable) if side is not None)
    return f"{found.measure} {sides} {found.unit} of {found.num_canary}"


def figures(seen: Evidence, comparisons: tuple[Comparison, ...]) -> dict[str, float | int | str]:
    """For the report."""
    total = seen.num_requests
    found: dict[str, float | int | str] = {
        "requests": total,
        "errors": seen.errors,
        "error_rate": round(seen.errors / total, 4) if total else 0.0,
        "client_requests": seen.client_requests,
        "probes": seen.probes,
    }
    found.update({compared.measure: compared.describe(named=False) for compared in comparisons})
    return found
