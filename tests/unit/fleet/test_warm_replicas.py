"""Which replicas of an earlier rollout a new one takes over."""

from types import SimpleNamespace
from typing import Any, cast

from pipeline.fleet.rollout import _warm_deployment
from pipeline.fleet.state import Deployment, ModelFleet, Replica, Served


def deployment(generation: int) -> Deployment:
    replica = Replica(id=f"r-{generation}", port=20_000 + generation)
    return Deployment(
        version="1", generation=generation, bundle_digest="1" * 64, replicas=(replica,), ready=True, routed=True
    )


def test_what_serves_is_not_tried_against_itself() -> None:
    """Its version is wanted again because one of its replicas is gone for good: both sides of the weights would be the
    same deployment, and at the last step it would have 0 per cent."""
    model = ModelFleet(
        name="m",
        generation=2,
        serving=Served(version="1", generation=1, deployment=1),
        weights={1: 100},
        deployments=(deployment(1),),
    )
    fleet = cast(Any, SimpleNamespace(all_healthy=lambda found: True))
    wanted = cast(Any, SimpleNamespace(version="1", bundle_digest="1" * 64))
    assert _warm_deployment(fleet, model, wanted) is None
    warm = deployment(2)
    assert _warm_deployment(fleet, model.with_deployment(warm), wanted) == warm
