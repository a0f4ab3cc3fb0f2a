"""Is the canary good enough? Pure arithmetic over what was observed.

Errors: the canary is bad once the exact (Clopper–Pearson) one-sided 95 % lower bound of its error rate lies above
`max_error_rate`. While the rate itself lies above it and the bound does not, the figures are too few to tell and more
probes are asked for; when those are used up, the rate decides. Latency: the canary's median against the stable
version's, measured at the same time on the same prompts; a difference below `LATENCY_FLOOR_S` never counts, since a
ratio of two very short times is mostly noise.
"""

import math
from dataclasses import dataclass
from statistics import median
from typing import Literal

CONFIDENCE = 0.95
LATENCY_FLOOR_S = 0.05
MIN_LATENCIES = 5
"""Fewer answers on either side say nothing about a median."""

Finding = Literal["healthy", "unhealthy", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What one step has seen so far."""

    requests: int
    """Attempts at the canary's replicas, clients' and probes'."""
    errors: int
    probes: int
    canary_latencies_s: tuple[float, ...] = ()
    stable_latencies_s: tuple[float, ...] = ()

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0

    @property
    def latency_ratio(self) -> float | None:
        """None while there is too little to compare."""
        if min(len(self.canary_latencies_s), len(self.stable_latencies_s)) < MIN_LATENCIES:
            return None
        return median(self.canary_latencies_s) / max(median(self.stable_latencies_s), 1e-6)

    def figures(self) -> dict[str, float | int | str]:
        """For the report."""
        found: dict[str, float | int | str] = {
            "requests": self.requests,
            "errors": self.errors,
            "error_rate": round(self.error_rate, 4),
            "probes": self.probes,
        }
        for side, values in (("canary", self.canary_latencies_s), ("stable", self.stable_latencies_s)):
            if values:
                found[f"{side}_median_ms"] = round(median(values) * 1000, 1)
        if self.latency_ratio is not None:
            found["latency_ratio"] = round(self.latency_ratio, 3)
        return found


def judge(seen: Observation, *, max_error_rate: float, max_latency_ratio: float) -> tuple[Finding, str]:
    """The finding, and a sentence with the figures."""
    rate = f"{seen.errors} of {seen.requests} canary requests failed ({seen.error_rate:.1%})"
    if error_rate_lower_bound(seen.errors, seen.requests) > max_error_rate:
        return "unhealthy", f"{rate}, more than max_error_rate {max_error_rate:.1%} allows"
    if seen.error_rate > max_error_rate:
        return "undecided", f"{rate}: too few to tell whether that is above max_error_rate {max_error_rate:.1%}"
    ratio = seen.latency_ratio
    if ratio is None:
        return "healthy", rate
    canary_s, stable_s = median(seen.canary_latencies_s), median(seen.stable_latencies_s)
    times = f"median latency {canary_s * 1000:.0f} ms against {stable_s * 1000:.0f} ms (ratio {ratio:.2f})"
    if ratio > max_latency_ratio and canary_s - stable_s > LATENCY_FLOOR_S:
        return "unhealthy", f"{times} is above max_latency_ratio {max_latency_ratio:g}; {rate}"
    return "healthy", f"{rate}; {times}"


def error_rate_lower_bound(errors: int, requests: int) -> float:
    """The smallest error rate at which so many errors or more still have a chance of 1 − CONFIDENCE.

    Clopper and Pearson, Biometrika 26 (1934), by bisection over the binomial tail.
    """
    if errors == 0 or requests == 0:
        return 0.0
    low, high = 0.0, errors / requests
    for _ in range(40):
        middle = (low + high) / 2
        if _tail(errors, requests, rate=middle) > 1 - CONFIDENCE:
            high = middle
        else:
            low = middle
    return low


def _tail(errors: int, requests: int, *, rate: float) -> float:
    """P(at least `errors` of `requests` fail) when each fails with `rate`."""
    if rate <= 0:
        return 0.0
    if rate >= 1:
        return 1.0
    below = 0.0
    for count in range(errors):
        ways = math.lgamma(requests + 1) - math.lgamma(count + 1) - math.lgamma(requests - count + 1)
        below += math.exp(ways + count * math.log(rate) + (requests - count) * math.log1p(-rate))
    return 1.0 - below
