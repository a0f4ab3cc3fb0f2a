"""Simulated incidents of a canary, judged by Slipway and by the threshold rules that other tools define, on the very
same requests.

An incident is a stream of answers: each side's requests come at their rate, fail with their rate, and take a lognormal
time to the first token; golden prompts are answered alike by both versions but for some.

The rules are those of the tools' documentation, with the limits of the same recipe, and with what they compare against
known exactly (the stable version's true figure times the allowed ratio), which is more than a user of them has:

- Argo Rollouts (docs/features/analysis.md, v1.10): a measurement every `interval` over the last `interval`, failed if
  the success condition does not hold; more than `failureLimit` failed ones abort. interval 1 m, failureLimit 3.
- Flagger (docs.flagger.app, usage/metrics and how-it-works): request-success-rate ≥ 99 % and request-duration (p99)
  below a limit, over 1 m, every minute; `threshold` (5) failed checks roll back.
- SageMaker (deployment guardrails: auto-rollback configuration): a CloudWatch alarm on the average of a period; here
  of one minute, two periods running.
- KServe (canary rollout strategy): traffic is split by `canaryTrafficPercent`; nothing is compared, a person decides.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts.rollout import Rollout
from pipeline.fleet.analysis import judging
from pipeline.fleet.analysis.evidence import Evidence
from pipeline.fleet.analysis.sequences import MeanDifference, Sample

Floats = NDArray[np.float64]
LIMITS = Rollout(
    steps=(50, 100),
    max_error_rate=0.01,
    max_ttft_ratio=1.1,
    max_latency_ratio=1.1,
    max_score_drop=0.01,
    on_undecided="promote",
)
"""What a busy service may ask for; the defaults are for small ones."""
TTFT_MS, SPREAD = 500.0, 0.5
"""Median and sigma of the lognormal time to first token of the stable version."""
MINUTE_S = 60


@dataclass(frozen=True, kw_only=True)
class Incident:
    """What is wrong with the canary, if anything."""

    name: str
    error_rate: float = 0.001
    stable_error_rate: float = 0.001
    slower: float = 1.0
    """Its time to first token ÷ the stable version's."""
    score_drop: float = 0.0
    """Of the share of golden prompts that are answered right."""
    canary_rps: float = 5.0
    stable_rps: float = 45.0
    golden_per_s: float = 2.0
    minutes: float = 30.0

    @property
    def is_bad(self) -> bool:
        return (self.error_rate, self.slower, self.score_drop) != (self.stable_error_rate, 1.0, 0.0)


INCIDENTS = (
    Incident(name="nothing wrong, busy"),
    Incident(name="nothing wrong, quiet", canary_rps=0.2, stable_rps=1.8),
    Incident(name="2 % errors", error_rate=0.02),
    Incident(name="20 % errors", error_rate=0.2),
    Incident(name="2 % errors, quiet", error_rate=0.02, canary_rps=0.5, stable_rps=4.5),
    Incident(name="TTFT 20 % slower", slower=1.2),
    Incident(name="TTFT twice as slow", slower=2.0),
    Incident(name="score 3 points lower", score_drop=0.03),
    Incident(name="score 10 points lower", score_drop=0.10),
)
DISAGREEMENT = 0.02
"""The share of golden prompts that either version alone answers right, when neither is better."""


@dataclass(frozen=True)
class Side:
    """One version's answers, in order of time."""

    at_s: Floats
    failed: NDArray[np.bool_]
    ttft_ms: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, rps: float, seconds: float, *, errors: float, ttft_ms: float) -> "Side":
        at_s = np.sort(rng.random(rng.poisson(rps * seconds)) * seconds)
        return cls(at_s, rng.random(at_s.size) < errors, rng.lognormal(np.log(ttft_ms), SPREAD, at_s.size))

    def between(self, begin_s: float, end_s: float) -> slice:
        return slice(*np.searchsorted(self.at_s, [begin_s, end_s]))


@dataclass(frozen=True)
class Course:
    """One course of an incident."""

    incident: Incident
    canary: Side
    stable: Side
    differences: NDArray[np.int64]
    """Of golden prompts: 1 if the canary alone is right, −1 if the stable version alone is."""

    @classmethod
    def draw(cls, incident: Incident, seed: int) -> "Course":
        rng = np.random.default_rng(seed)
        seconds = MINUTE_S * incident.minutes
        canary = Side.draw(
            rng, incident.canary_rps, seconds, errors=incident.error_rate, ttft_ms=TTFT_MS * incident.slower
        )
        stable = Side.draw(rng, incident.stable_rps, seconds, errors=incident.stable_error_rate, ttft_ms=TTFT_MS)
        chances = [DISAGREEMENT + incident.score_drop, 1 - 2 * DISAGREEMENT - incident.score_drop, DISAGREEMENT]
        pairs = rng.choice([-1, 0, 1], size=int(incident.golden_per_s * seconds), p=chances)
        return cls(incident, canary, stable, pairs)

    @cached_property
    def seconds(self) -> float:
        return MINUTE_S * self.incident.minutes


@dataclass(frozen=True)
class Verdict:
    """What a rule made of a course."""

    rolled_back: bool
    after_s: float
    canary_requests: int
    pairs: int = 0
    why: str = ""


Rule = Callable[[Course], Verdict]


def looks(seconds: float, look_s: float) -> list[float]:
    """Every `look_s` seconds, later every twentieth of the time gone by: to save time, not to look less often than the
    verdict needs."""
    found, now = [], look_s
    while now < seconds:
        found.append(now)
        now += max(look_s, 0.05 * now)
    return [*found, seconds]


def slipway(course: Course, *, look_s: float = 5.0, limits: Rollout = LIMITS) -> Verdict:
    """The product's own judging, looked at every `look_s` seconds at first; a step of the incident's whole length."""
    seen = Evidence(weight=10, score=MeanDifference(alpha=judging.alpha_of(1)))
    assert seen.score is not None
    before = 0.0
    comparisons: tuple[judging.Comparison, ...] = ()
    for now in looks(course.seconds, look_s):
        canary, stable = course.canary.between(before, now), course.stable.between(before, now)
        seen.requests = seen.client_requests = canary.stop
        seen.errors = int(course.canary.failed[: canary.stop].sum())
        seen.stable_requests, seen.stable_errors = stable.stop, int(course.stable.failed[: stable.stop].sum())
        _extend(seen.samples, "canary", course.canary.ttft_ms[canary])
        _extend(seen.samples, "stable", course.stable.ttft_ms[stable])
        rate = course.incident.golden_per_s
        for difference in course.differences[int(before * rate) : int(now * rate)]:
            seen.score.add(max(float(difference), 0.0), max(-float(difference), 0.0))
        before = now
        comparisons = judging.compare(seen, limits, alpha=judging.alpha_of(1))
        if why := judging.alarm(comparisons):
            return Verdict(True, before, seen.requests, seen.score.total, why)
    finding, why = judging.conclude(comparisons, policy=limits.on_undecided)
    return Verdict(finding == "unhealthy", before, seen.requests, seen.score.total, why)


def _extend(samples: dict[tuple[str, str, str], Sample], side: str, times_ms: Floats) -> None:
    """As `Evidence.add`, many at once."""
    sample = samples.setdefault((side, "clients", "time to first token"), Sample())
    sample.values = np.sort(np.concatenate([sample.values, times_ms]), kind="stable")


def argo(course: Course) -> Verdict:
    """More than three failed measurements."""
    return _checks(course, lambda side: _error_rate(side) > 0.01 or _slow(side, 50, 1.1), allowed=3)


def flagger(course: Course) -> Verdict:
    """The fifth failed check; nothing can be checked, and nothing advances, in a minute without traffic."""
    return _checks(course, lambda side: _error_rate(side) > 0.01 or _slow(side, 99, 1.1), allowed=4)


def sagemaker(course: Course) -> Verdict:
    """Two periods running."""
    return _checks(course, lambda side: _error_rate(side) > 0.01 or _mean_is_slow(side, 1.1), allowed=1, running=True)


def kserve(course: Course) -> Verdict:
    """A ready replica is a good one."""
    return Verdict(False, course.seconds, course.canary.at_s.size)


RULES: dict[str, Rule] = {
    "Slipway": slipway,
    "Argo Rollouts": argo,
    "Flagger": flagger,
    "SageMaker": sagemaker,
    "KServe": kserve,
}


def _checks(course: Course, fails: Callable[[Side], bool], *, allowed: int, running: bool = False) -> Verdict:
    """A check every minute; one more failed check than `allowed` (in a row, where `running`) rolls back."""
    failed = 0
    for minute in range(int(course.incident.minutes)):
        chosen = course.canary.between(minute * MINUTE_S, (minute + 1) * MINUTE_S)
        side = replace(
            course.canary,
            at_s=course.canary.at_s[chosen],
            failed=course.canary.failed[chosen],
            ttft_ms=course.canary.ttft_ms[chosen],
        )
        if side.at_s.size and fails(side):
            failed += 1
        elif running:
            failed = 0
        if failed > allowed:
            return Verdict(True, (minute + 1) * MINUTE_S, int(chosen.stop))
    return Verdict(False, course.seconds, course.canary.at_s.size)


def _error_rate(side: Side) -> float:
    return float(side.failed.mean())


def _slow(side: Side, percentile: float, ratio: float) -> bool:
    z = {50: 0.0, 99: 2.3263}[int(percentile)]
    return float(np.percentile(side.ttft_ms, percentile)) > ratio * TTFT_MS * float(np.exp(SPREAD * z))


def _mean_is_slow(side: Side, ratio: float) -> bool:
    return float(side.ttft_ms.mean()) > ratio * TTFT_MS * float(np.exp(SPREAD**2 / 2))
