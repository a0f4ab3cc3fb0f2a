"""When a new version takes all traffic without having been tried step by step."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.fleet.parts import Fleet
from pipeline.fleet.shifting import _goes_at_once
from pipeline.fleet.state import Deployment, ModelFleet, Replica, Served


def deployment(generation: int) -> Deployment:
    replicas = tuple(Replica(id=f"r-{generation}-{index}", port=20_000 + 10 * generation + index) for index in range(2))
    return Deployment(version=str(generation), generation=generation, bundle_digest="1" * 64, replicas=replicas)


MODEL = ModelFleet(
    name="m",
    generation=2,
    serving=Served(version="1", generation=1, deployment=1),
    canary=Served(version="2", generation=2, deployment=2),
    weights={1: 75, 2: 25},
    deployments=(deployment(1), deployment(2)),
)
FIRST, SECOND = (replica.address for replica in deployment(1).replicas)


def goes_at_once(*health: dict[str, bool] | None, wait_s: float = 0.0, alive: bool = True) -> bool:
    """With what the gateway says of the health at one look after the other; the last one stays."""
    looks = list(health)

    def wait(condition: Any, _: float) -> bool:
        return any(condition() for _ in range(10))

    fleet = SimpleNamespace(
        gateway=SimpleNamespace(healthy=lambda: looks.pop(0) if len(looks) > 1 else looks[0], wait=wait),
        replicas=SimpleNamespace(alive=lambda replicas: alive),
        all_healthy=lambda found: Fleet.all_healthy(cast(Any, fleet), found),
        some_healthy=lambda found: Fleet.some_healthy(cast(Any, fleet), found),
    )
    return _goes_at_once(cast(Any, fleet), MODEL, wait_s)


@pytest.mark.parametrize("health", [{FIRST: True, SECOND: False}, None])
def test_one_dead_replica_of_what_serves_spares_nobody_the_trial(health: dict[str, bool] | None) -> None:
    """The others go on serving; nor does a gateway that says nothing mean that all are dead."""
    assert not goes_at_once(health)


def test_whoever_stands_in_for_a_dead_version_goes_at_once() -> None:
    """Not one of its replicas answers."""
    assert goes_at_once({FIRST: False, SECOND: False})


def test_a_trial_goes_on_after_a_restart_of_the_stack() -> None:
    """What serves takes a while to answer again, unless it is not kept running."""
    loading, ready = {FIRST: False, SECOND: False}, {FIRST: True, SECOND: False}
    assert not goes_at_once(loading, loading, ready, wait_s=60)
    assert goes_at_once(loading, wait_s=60, alive=False)
