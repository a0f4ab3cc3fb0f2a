"""How many replicas a model should have, from what was seen of those that it has. Pure.

The load is the requests that replicas run or hold in their queues, and the share of their KV caches that is in use;
each has a target for one replica. Up is quick: as soon as the load was above the target for `up_after_s`. Down is slow:
one replica at a time, once the load would have left the remaining ones below `down_share` of the target for all of
`down_after_s`. The gap between the two is what keeps a load near a boundary from moving anything (hysteresis); every
change empties the record, so that the next decision rests on what came after it (cool-down).
"""

import math
from collections.abc import Sequence

from pipeline.contracts.base import Contract
from pipeline.contracts.rollout import Autoscale, Rollout
from pipeline.fleet.state import Deployment


class Observation(Contract):
    """One look at the serving replicas of one model."""

    at: float
    """Seconds, of a clock that never goes back."""
    replicas: int
    """That take requests."""
    requests: float
    """Running and waiting, over all replicas that answered."""
    kv_cache: float
    """Sum of the shares in use (0 to 1) of all replicas that answered."""
    complete: bool = True
    """Every replica answered; else the load is at least what is said here."""
    regions: int = 1
    """That they are in: one replica stays in each, so that a lost region always has another to take over."""
    per_working: float = 1.0
    """Replicas for each one that is given requests: the others stand by in a further region, or are put aside."""


def needed(observation: Observation, settings: Autoscale, share: float = 1.0) -> int:
    """How many replicas the load takes, each used to `share` of its target; within the bounds."""
    by_requests = observation.per_working * observation.requests / (settings.requests_per_replica * share)
    by_cache = observation.per_working * observation.kv_cache / (settings.kv_cache_share * share)
    return _bounded(math.ceil(max(by_requests, by_cache) - 1e-9), settings, observation.regions)


def decide(observations: Sequence[Observation], settings: Autoscale) -> int:
    """How many replicas there should be now.

    Args:
        observations: since the last change, oldest first; at least one.
    """
    now = observations[-1]
    current = _bounded(now.replicas, settings, now.regions)
    if current != now.replicas:
        return current
    if _covers(observations, settings.up_after_s):
        recent = [seen for seen in observations if now.at - seen.at <= settings.up_after_s]
        if (lowest := min(needed(seen, settings) for seen in recent)) > current:
            return lowest
    if _covers(observations, settings.down_after_s):
        recent = [seen for seen in observations if now.at - seen.at <= settings.down_after_s]
        known = all(seen.complete for seen in recent)
        if known and max(needed(seen, settings, settings.down_share) for seen in recent) < current:
            return current - 1
    return current


def kept(observations: Sequence[Observation], settings: Autoscale) -> list[Observation]:
    """What later decisions can still need: the longer window, and the last one before it."""
    window = max(settings.up_after_s, settings.down_after_s)
    first = next((n for n, seen in enumerate(observations) if observations[-1].at - seen.at <= window), 0)
    return list(observations[max(0, first - 1) :])


def reason(observations: Sequence[Observation], settings: Autoscale, wanted: int) -> str:
    """A sentence with the figures that led to `wanted`."""
    now = observations[-1]
    figures = f"{now.requests:g} requests and {now.kv_cache:.2f} KV caches in use"
    if wanted > now.replicas:
        return f"{figures}, above the target of {now.replicas} for {settings.up_after_s:g} s"
    return f"{figures}, below {settings.down_share:.0%} of the target of {wanted} for {settings.down_after_s:g} s"


def initial_replicas(settings: Rollout, serving: Deployment | None) -> int:
    """How many a new version starts with: as many as serve now where their number follows the load."""
    if settings.autoscale is None or serving is None or not serving.serving:
        return settings.replicas
    return _bounded(len(serving.serving), settings.autoscale)


def _covers(observations: Sequence[Observation], window_s: float) -> bool:
    return observations[-1].at - observations[0].at >= window_s


def _bounded(count: int, settings: Autoscale, regions: int = 1) -> int:
    return min(max(count, settings.min_replicas, regions), settings.max_replicas)
