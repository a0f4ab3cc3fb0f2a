"""When a canary is good enough."""

import pytest

from pipeline.fleet.analysis.judging import Observation, error_rate_lower_bound, judge

FAST, SLOW = (0.1,) * 10, (0.5,) * 10


@pytest.mark.parametrize(
    ("requests", "errors", "canary_s", "stable_s", "finding"),
    [
        (100, 0, FAST, FAST, "healthy"),
        (20, 1, FAST, FAST, "undecided"),
        (100, 1, FAST, FAST, "healthy"),
        (20, 2, FAST, FAST, "unhealthy"),
        (5, 5, (), (), "unhealthy"),
        (100, 0, SLOW, FAST, "unhealthy"),
        (100, 0, (0.012,) * 10, (0.002,) * 10, "healthy"),
        (100, 0, SLOW[:4], FAST, "healthy"),
        (0, 0, (), (), "healthy"),
    ],
)
def test_a_canary_is_judged_by_certain_errors_and_by_its_median(
    requests: int, errors: int, canary_s: tuple[float, ...], stable_s: tuple[float, ...], finding: str
) -> None:
    """One error of twenty is too few to tell; two are not; a few milliseconds are never a reason."""
    seen = Observation(
        requests=requests, errors=errors, probes=0, canary_latencies_s=canary_s, stable_latencies_s=stable_s
    )
    assert judge(seen, max_error_rate=0.01, max_latency_ratio=3.0)[0] == finding


@pytest.mark.parametrize(
    ("errors", "requests", "bound"), [(0, 20, 0.0), (1, 20, 0.00256), (2, 20, 0.01807), (5, 5, 0.54928)]
)
def test_the_error_bound_is_that_of_clopper_and_pearson(errors: int, requests: int, bound: float) -> None:
    """Against published values: the 5 % quantile of Beta(errors, requests − errors + 1)."""
    assert error_rate_lower_bound(errors, requests) == pytest.approx(bound, abs=1e-4)
