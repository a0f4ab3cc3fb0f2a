"""What Prometheus is told about replicas."""

from pipeline.fleet.state import Deployment, ModelFleet, Replica
from pipeline.fleet.targets import scrape_targets


def deployment(generation: int, *, routed: bool) -> Deployment:
    replica = Replica(id=f"r{generation}", host="10.0.0.1", port=8000 + generation)
    return Deployment(
        version="3", generation=generation, bundle_digest="0" * 64, replicas=(replica,), ready=routed, routed=routed
    )


def test_replicas_that_the_gateway_knows_are_named_with_what_they_serve() -> None:
    """One that is still loading has no figures yet."""
    model = ModelFleet(name="m", deployments=(deployment(1, routed=True), deployment(2, routed=False)))
    assert scrape_targets({"m": model}) == [
        {"targets": ["10.0.0.1:8001"], "labels": {"model": "m", "version": "3", "generation": "1"}}
    ]
    assert scrape_targets({}) == []
