"""When a canary is shown worse, shown not worse, or neither."""

import pytest

from pipeline.contracts.rollout import Rollout
from pipeline.fleet.analysis import judging
from pipeline.fleet.analysis.comparison import Comparison
from pipeline.fleet.analysis.evidence import MEASURES, Evidence, Measure, Side
from pipeline.fleet.analysis.sequences import MeanDifference
from tests import incidents
from tests.incidents import INCIDENTS, RULES, Course, Incident, Rule, slipway

ALPHA = judging.alpha_of(1)


def evidence(requests: int = 0, errors: int = 0, **values: object) -> Evidence:
    return Evidence(requests=requests, errors=errors, stable_requests=10 * requests, **values)  # type: ignore[arg-type]


def with_times(seen: Evidence, canary_s: list[float], stable_s: list[float], source: str = "clients") -> Evidence:
    sides: tuple[tuple[Side, list[float]], ...] = (("canary", canary_s), ("stable", stable_s))
    for side, times_s in sides:
        seen.add(side, source, "end-to-end latency", times_s)  # type: ignore[arg-type]
    return seen


def spread(middle: float, count: int) -> list[float]:
    """Times around a middle."""
    return [middle * (0.8 + 0.4 * index / count) for index in range(count)]


def found(comparisons: tuple[Comparison, ...], measure: str) -> Comparison:
    return next(one for one in comparisons if one.measure == measure)


@pytest.mark.parametrize(
    ("requests", "errors", "verdict"),
    [
        (0, 0, "undecided"),
        (20, 1, "undecided"),
        (20, 2, "undecided"),
        (5, 5, "worse"),
        (20, 6, "worse"),
        (2000, 0, "not worse"),
        (2000, 20, "undecided"),
        (2000, 80, "worse"),
    ],
)
def test_errors_are_held_to_their_limit(requests: int, errors: int, verdict: str) -> None:
    """Two errors of twenty are too few to tell, five of five are not, and thousands of good answers clear it."""
    comparisons = judging.compare(evidence(requests, errors), Rollout(), alpha=ALPHA)
    assert found(comparisons, "error rate").verdict == verdict
    assert (judging.alarm(comparisons) is not None) == (verdict == "worse")


def test_more_errors_than_the_stable_version_are_worse_below_the_limit_too() -> None:
    """Where the limit is generous, what is served sets the measure."""
    limits = Rollout(max_error_rate=0.2, max_error_rate_rise=0.01)
    comparisons = judging.compare(evidence(1000, 80), limits, alpha=ALPHA)
    assert found(comparisons, "error rate").verdict == "not worse"
    assert found(comparisons, "error rate against stable").verdict == "worse"
    assert "max_error_rate_rise" in (judging.alarm(comparisons) or "")


def test_refused_probes_are_judged_among_themselves() -> None:
    """However much traffic there is: clients' own 4xx are theirs."""
    comparisons = judging.compare(evidence(100_000, 0, probes=12, refusals=6), Rollout(), alpha=ALPHA)
    assert found(comparisons, "error rate").verdict == "not worse"
    assert "refused probes" in (judging.alarm(comparisons) or "")


@pytest.mark.parametrize(
    ("canary_s", "stable_s", "count", "verdict"),
    [
        (0.5, 0.1, 100, "worse"),
        (0.5, 0.1, 12, "undecided"),
        (0.1, 0.1, 100, "not worse"),
        (0.012, 0.002, 100, "not worse"),
        (0.3, 0.1, 100, "undecided"),
    ],
)
def test_a_median_is_compared_by_its_ratio_and_by_more_than_a_few_milliseconds(
    canary_s: float, stable_s: float, count: int, verdict: str
) -> None:
    """Six times as slow is nothing when it is ten milliseconds."""
    seen = with_times(evidence(count), spread(canary_s, count), spread(stable_s, count))
    comparisons = judging.compare(seen, Rollout(max_latency_ratio=3.0, min_requests=10), alpha=ALPHA)
    latency = found(comparisons, "end-to-end latency, median")
    assert latency.verdict == verdict
    assert latency.canary == pytest.approx(1000 * canary_s, rel=0.05)


def test_a_tail_is_compared_too() -> None:
    """One answer in twenty takes ten times as long: the median is as ever, the 99th percentile is not."""
    usual = spread(0.1, 100)
    seen = with_times(evidence(8000), ([1.0] * 5 + usual[5:]) * 80, usual * 80)
    comparisons = judging.compare(seen, Rollout(max_latency_ratio=3.0), alpha=ALPHA)
    assert found(comparisons, "end-to-end latency, median").verdict == "not worse"
    assert found(comparisons, "end-to-end latency, p99").verdict == "worse"


def test_each_latency_has_its_own_limit_where_the_recipe_gives_one() -> None:
    """The others keep the common one."""
    seen = evidence(200)
    for measure in MEASURES:
        seen.add("canary", "probes", measure, spread(1.5, 200))
        seen.add("stable", "probes", measure, spread(1.0, 200))
    comparisons = judging.compare(seen, Rollout(max_ttft_ratio=1.1), alpha=ALPHA)
    assert found(comparisons, "time to first token, median (probes)").verdict == "worse"
    assert found(comparisons, "inter-token latency, median (probes)").verdict == "not worse"
    assert "max_ttft_ratio" in (judging.alarm(comparisons) or "")


def test_probes_speak_where_clients_are_few_and_the_report_says_so() -> None:
    """And are silent where the canary is busy with all the traffic while the stable version idles."""
    seen = with_times(evidence(30, probes=30), spread(0.5, 30), spread(0.1, 30), source="probes")
    comparisons = judging.compare(seen, Rollout(), alpha=ALPHA)
    assert found(comparisons, "end-to-end latency, median (probes)").verdict == "worse"
    assert judging.figures(seen, comparisons)["probes"] == 30
    seen.weight, seen.client_requests = 100, 1000
    assert not [one for one in judging.compare(seen, Rollout(), alpha=ALPHA) if one.unit == "ms"]


def test_a_lower_score_is_worse() -> None:
    """Golden prompts, pair by pair."""
    seen = evidence(100, score=MeanDifference(alpha=ALPHA))
    assert seen.score is not None
    for number in range(300):
        seen.score.add(float(number % 5 > 0), 1.0)
    comparisons = judging.compare(seen, Rollout(max_score_drop=0.02), alpha=ALPHA)
    score = found(comparisons, "score against stable, golden prompts")
    assert (score.verdict, score.stable, score.margin) == ("worse", 100.0, -2.0)


def test_a_step_is_over_once_errors_and_medians_are_cleared() -> None:
    """It does not wait for tails, which take thousands of answers."""
    seen = with_times(evidence(3000), spread(0.1, 100), spread(0.1, 1000))
    comparisons = judging.compare(seen, Rollout(), alpha=ALPHA)
    assert found(comparisons, "end-to-end latency, p99").verdict == "undecided"
    assert judging.all_clear(comparisons)
    assert not judging.all_clear(judging.compare(evidence(100), Rollout(), alpha=ALPHA))


@pytest.mark.parametrize(
    ("errors", "policy", "finding"),
    [
        (0, "promote", "healthy"),
        (0, "by_figures", "healthy"),
        (0, "roll_back", "unhealthy"),
        (3, "promote", "healthy"),
        (3, "by_figures", "unhealthy"),
        (3, "roll_back", "unhealthy"),
    ],
)
def test_what_is_undecided_when_the_time_is_up_is_settled_by_the_recipe(errors: int, policy: str, finding: str) -> None:
    """And the reason says that it was."""
    comparisons = judging.compare(evidence(100, errors), Rollout(), alpha=ALPHA)
    assert judging.alarm(comparisons) is None
    assert bool(judging.doubts(comparisons)) == bool(errors)
    concluded, reason = judging.conclude(comparisons, policy=policy)  # type: ignore[arg-type]
    assert concluded == finding
    assert f"on_undecided is {policy}" in reason


def test_the_false_alarms_of_all_steps_and_comparisons_add_up_to_five_per_cent() -> None:
    """However often a step is repeated; and no more comparisons are made than share them."""
    shares = [judging.NUM_COMPARISONS * judging.alpha_of(watch) for watch in range(1, 10_000)]
    assert sum(shares) <= judging.FALSE_ALARMS
    seen = evidence(1000, 1, probes=50, refusals=1, score=MeanDifference(alpha=ALPHA))
    assert seen.score is not None
    seen.score.add(1.0, 1.0)
    sides: tuple[Side, ...] = ("canary", "stable")
    for measure in MEASURES:
        for side in sides:
            seen.add(side, "probes", measure, spread(0.1, 50))
    by_probes = {one.measure for one in judging.compare(seen, Rollout(), alpha=ALPHA)}
    clients: tuple[Measure, ...] = ("time to first token", "end-to-end latency")
    for measure in clients:
        for side in sides:
            seen.add(side, "clients", measure, spread(0.1, 50))
    by_clients = {one.measure for one in judging.compare(seen, Rollout(), alpha=ALPHA)}
    assert len(by_probes | by_clients) == judging.NUM_COMPARISONS


# --- simulations ---------------------------------------------------------------------------------------------------


def test_versions_alike_are_rarely_rolled_back_however_often_one_looks() -> None:
    """36 rollouts at the very edge of what is allowed for one measure, looked at every ten seconds for five minutes.

    The edge is where false alarms are likeliest; what 2000 courses do is in test_sequences.
    """
    edges = (
        Incident(name="errors at the limit", error_rate=0.01, stable_error_rate=0.01, minutes=5, golden_per_s=1),
        Incident(name="slower by what is allowed", slower=1.1, minutes=5, golden_per_s=1),
        Incident(name="score lower by what is allowed", score_drop=0.01, minutes=5, golden_per_s=1),
    )
    alarms = sum(slipway(Course.draw(edge, seed), look_s=10).rolled_back for edge in edges for seed in range(12))
    assert alarms <= 0.05 * 36


def share(rule: Rule, name: str, courses: int) -> float:
    """Of the courses of an incident that the rule rolls back."""
    incident = next(one for one in INCIDENTS if one.name == name)
    return sum(rule(Course.draw(incident, seed)).rolled_back for seed in range(courses)) / courses


def coarse(course: Course) -> incidents.Verdict:
    """Slipway, looked at every half minute, to save time."""
    return slipway(course, look_s=30)


def test_thresholds_roll_back_good_versions_where_slipway_does_not() -> None:
    """One error in twelve requests is 8 %: with little traffic a threshold goes off sooner or later."""
    assert share(coarse, "nothing wrong, quiet", 10) == 0
    assert share(RULES["Argo Rollouts"], "nothing wrong, quiet", 10) >= 0.9
    assert share(RULES["SageMaker"], "nothing wrong, quiet", 10) >= 0.5
    assert share(RULES["Flagger"], "nothing wrong, busy", 10) >= 0.2


@pytest.mark.parametrize("name", ["2 % errors", "20 % errors", "TTFT 20 % slower", "score 10 points lower"])
def test_bad_versions_are_caught(name: str) -> None:
    """All of ten courses, within half an hour."""
    assert share(coarse, name, 10) == 1


def test_thresholds_do_not_see_a_lower_score() -> None:
    """Nothing asks both versions the same question."""
    assert share(RULES["Argo Rollouts"], "score 10 points lower", 10) == 0
    assert share(RULES["SageMaker"], "score 10 points lower", 10) == 0


def test_a_gross_fault_is_caught_before_a_threshold_was_looked_at_once() -> None:
    """A fifth of the requests fails: seconds against minutes."""
    incident = next(one for one in INCIDENTS if one.name == "20 % errors")
    for seed in range(5):
        course = Course.draw(incident, seed)
        ours = slipway(course, look_s=1)
        others = [rule(course).after_s for name, rule in RULES.items() if name not in ("Slipway", "KServe")]
        assert ours.rolled_back
        assert ours.after_s < 60 < min(others)
