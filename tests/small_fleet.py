"""A fleet of one model, for tests of what becomes of its replicas."""

from pipeline.fleet.state import Deployment, ModelFleet, Replica, Served


def serving(*replicas: Replica) -> ModelFleet:
    """Version 1 on `replicas`, with all the traffic."""
    held = Deployment(
        version="1",
        generation=1,
        bundle_digest="1" * 64,
        replicas=replicas,
        num_wanted=len(replicas),
        ready=True,
        routed=True,
    )
    return ModelFleet(
        name="m",
        generation=1,
        serving=Served(version="1", generation=1, deployment=1),
        weights={1: 100},
        deployments=(held,),
    )
