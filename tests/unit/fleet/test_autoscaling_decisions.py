"""How many replicas: simulated loads, second by second."""

import itertools
import math
import random
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from pipeline.contracts.rollout import Autoscale, Rollout
from pipeline.fleet.autoscaling import scraping
from pipeline.fleet.autoscaling.decisions import Observation, decide, initial_replicas, kept, needed, reason
from pipeline.fleet.autoscaling.scraping import observe, parse
from pipeline.fleet.state import Aside, Deployment, Replica

SETTINGS = Autoscale(
    min_replicas=1, max_replicas=8, requests_per_replica=10, up_after_s=10, down_after_s=60, down_share=0.7
)
LOOK_EVERY_S = 2


def simulate(
    load: Callable[[int], float], seconds: int, settings: Autoscale = SETTINGS, start: int = 1
) -> list[tuple[int, int]]:
    """The moments at which the number of replicas changed, and what it became; `load` gives requests at a second."""
    replicas, seen, changes = start, [], []
    for second in range(0, seconds, LOOK_EVERY_S):
        found = Observation(at=float(second), replicas=replicas, requests=load(second), kv_cache=0.0)
        seen = kept([*seen, found], settings)
        wanted = decide(seen, settings)
        if wanted != replicas:
            replicas, seen = wanted, []
            changes.append((second, wanted))
    return changes


def one(requests: float = 0.0, kv_cache: float = 0.0) -> Observation:
    return Observation(at=0.0, replicas=1, requests=requests, kv_cache=kv_cache)


def test_the_load_says_how_many_it_takes() -> None:
    """By requests or by the caches, whichever takes more; never outside the bounds."""
    assert needed(one(requests=25), SETTINGS) == 3
    assert needed(one(requests=30), SETTINGS) == 3
    assert needed(one(requests=5, kv_cache=1.7), SETTINGS) == 3
    assert needed(one(), SETTINGS) == 1
    assert needed(one(requests=1000), SETTINGS) == 8


def test_a_jump_is_answered_in_one_step_and_soon() -> None:
    """After `up_after_s`, by as many replicas as it takes."""
    assert simulate(lambda second: 45.0 if second >= 100 else 5.0, 400) == [(110, 5)]


def test_a_short_peak_changes_nothing() -> None:
    """It is over before a replica would have started."""
    assert simulate(lambda second: 70.0 if 100 <= second < 108 else 5.0, 400) == []


def test_an_ebb_takes_one_replica_away_at_a_time_and_slowly() -> None:
    """Each after `down_after_s` of its own."""
    changes = simulate(lambda second: 45.0 if second < 100 else 0.0, 500)
    assert [wanted for _, wanted in changes] == [5, 4, 3, 2, 1]
    moments = [second for second, _ in changes[1:]]
    assert moments[0] >= 160
    assert all(later - earlier >= 60 for earlier, later in itertools.pairwise(moments))


@pytest.mark.parametrize("level", [9.5, 10.0, 19.9, 20.0, 20.1, 34.0, 50.0])
def test_a_noisy_load_at_any_level_does_not_flap(level: float) -> None:
    """An hour of it, 15 % up and down, on each side of every boundary: at most what it takes to arrive."""
    noise = random.Random(level)
    changes = simulate(lambda _: max(0.0, noise.gauss(level, 0.15 * level)), 3600)
    counts = [wanted for _, wanted in changes]
    assert counts == sorted(counts), f"it went back: {changes}"
    assert math.ceil(level / 10) <= (counts or [1])[-1] <= math.ceil(level / 10 / 0.7) + 1


def test_a_day_is_followed_up_and_down_once() -> None:
    """A sine over two hours: up to its peak, down to its trough, no back and forth in between."""
    changes = simulate(lambda second: 30 - 28 * math.cos(2 * math.pi * second / 7200), 7200)
    counts = [1, *(wanted for _, wanted in changes)]
    turns = sum((b > a) != (c > b) for a, b, c in zip(counts, counts[1:], counts[2:], strict=False))
    assert max(counts) == 6
    assert turns == 1


def test_what_is_not_known_never_takes_a_replica_away() -> None:
    """A replica that hangs says nothing; the others may still ask for more."""
    silent = [
        Observation(at=float(at), replicas=3, requests=0, kv_cache=0, complete=at != 30) for at in range(0, 62, 2)
    ]
    assert decide(silent, SETTINGS) == 3
    busy = [Observation(at=float(at), replicas=3, requests=39, kv_cache=0, complete=False) for at in range(0, 12, 2)]
    assert decide(busy, SETTINGS) == 4


def test_bounds_that_a_new_recipe_set_are_met_at_once() -> None:
    """Whatever the load."""
    assert decide([one().model_copy(update={"replicas": 9})], SETTINGS) == 8
    two = SETTINGS.model_copy(update={"min_replicas": 2})
    assert decide([one()], two) == 2


def test_the_record_is_no_longer_than_decisions_need() -> None:
    """Minutes, not days."""
    seen: list[Observation] = []
    for second in range(0, 10_000, LOOK_EVERY_S):
        seen = kept([*seen, one().model_copy(update={"at": float(second)})], SETTINGS)
    assert len(seen) <= SETTINGS.down_after_s / LOOK_EVERY_S + 2
    assert seen[-1].at - seen[0].at >= SETTINGS.down_after_s


def test_the_reason_has_the_figures() -> None:
    """People read it in the log."""
    found = one(requests=25, kv_cache=0.5)
    assert reason([found], SETTINGS, 3) == ("25 requests and 0.50 KV caches in use, above the target of 1 for 10 s")
    assert "below 70% of the target of 1 for 60 s" in reason([found], SETTINGS, 1)


def deployment(*uses: str) -> Deployment:
    replicas = tuple(Replica.model_validate({"id": f"r-{n}", "port": n, "use": use}) for n, use in enumerate(uses))
    return Deployment(version="1", generation=1, bundle_digest="0" * 64, replicas=replicas)


def test_a_new_version_starts_with_as_many_as_serve_now() -> None:
    """Or promoting it at a busy hour would take replicas away."""
    scaled = Rollout(replicas=2, autoscale=SETTINGS)
    assert initial_replicas(scaled, deployment("serving", "serving", "serving", "leaving", "starting")) == 3
    assert initial_replicas(scaled, None) == 2
    assert initial_replicas(Rollout(replicas=2), deployment("serving")) == 2
    assert initial_replicas(scaled, deployment(*["serving"] * 9)) == 8


def test_bounds_and_replicas_have_to_agree() -> None:
    """The recipe is refused by name and value."""
    with pytest.raises(ValidationError, match=r"min_replicas \(3\) must not be above max_replicas \(2\)"):
        Autoscale(min_replicas=3, max_replicas=2)
    with pytest.raises(ValidationError, match=r"replicas \(4\) must be from autoscale.min_replicas \(1\)"):
        Rollout(replicas=4, autoscale=Autoscale(max_replicas=3))


METRICS = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="demo"} 3.0
vllm:num_requests_running{engine="1",model_name="demo"} 1.0
vllm:num_requests_waiting{engine="0",model_name="demo"} 2.0
vllm:num_requests_waiting{engine="1",model_name="demo"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="demo"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="demo"} 0.5
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 7.0
"""


TOKENS = """vllm:prompt_tokens_total{engine="0",model_name="demo"} 20.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="demo",source="compute"} 20.0
vllm:generation_tokens_total{engine="0",model_name="demo"} 8.0
vllm:generation_tokens_total{engine="1",model_name="demo"} 6.0
"""


def test_a_replicas_load_is_read_from_its_gauges() -> None:
    """Of all its engines; half an answer is none."""
    assert parse(METRICS) == (6.0, 0.5)
    assert parse(METRICS.replace("kv_cache_usage_perc", "another")) is None
    assert parse(METRICS.replace("0.25", "broken")) is None


@pytest.mark.parametrize(("says", "count"), [(TOKENS, 34.0), (METRICS, None), (None, None)])
def test_a_replicas_tokens_are_those_of_all_its_engines(
    says: str | None, count: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read and generated; one that does not say is not taken for one that has none."""
    monkeypatch.setattr(scraping, "_metrics", lambda replica: says)
    assert scraping.tokens(Replica(id="r", port=20_001)) == count


def test_replicas_that_stand_by_in_another_region_do_none_of_the_work() -> None:
    """Nor do those that are put aside: the load is that of the others alone."""
    near = Replica(id="a-0", port=1, region="near", rank=0)
    far = Replica(id="b-0", port=1, region="far", rank=1)
    aside = near.model_copy(update={"id": "a-1", "aside": Aside(kind="slow", reason="slow", since=0.0)})
    assert [observe(replicas).per_working for replicas in ([near], [near, far], [near, far, aside], [aside, far])] == [
        1.0,
        2.0,
        3.0,
        2.0,
    ]
    assert observe([aside]).per_working == 1.0
    assert needed(one(requests=20, kv_cache=0.0).model_copy(update={"replicas": 2, "per_working": 2.0}), SETTINGS) == 4


def test_one_replica_stays_in_each_region_whatever_the_least_number_is() -> None:
    """A lost region needs another to take over. What may be at most is never exceeded for it."""
    near, far = (Replica(id=name, port=1, region=name, rank=rank) for rank, name in enumerate(("near", "far")))
    looks = [observe([near, far]).model_copy(update={"at": float(at), "complete": True}) for at in range(0, 62, 2)]
    assert decide(looks, SETTINGS) == 2
    assert decide(looks, SETTINGS.model_copy(update={"max_replicas": 1})) == 1
    assert decide([look.model_copy(update={"regions": 1}) for look in looks], SETTINGS) == 1
