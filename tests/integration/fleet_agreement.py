"""Whether everything that says what is served says the same: the fleet's state, the registry, the gateway, replicas."""

from fleet_rig import MODEL, Rig

from pipeline.registry.models import CHAMPION, SERVING


def disagreements(rig: Rig, name: str = MODEL) -> list[str]:
    """What does not fit together once a rollout is over; empty if all agree."""
    model = rig.state(name)
    served = model.serving.version if model.serving else None
    deployment = model.deployment(model.serving.deployment) if model.serving else None
    kept = {replica.id for found in model.deployments for replica in found.replicas}
    running = {state.name for state in rig.supervisor.states() if state.name.startswith("replica-")}
    own = {replica.address for replica in deployment.replicas} if deployment else set()
    known = set(rig.gateway.hosts(name, deployment.generation)) if deployment else set()
    last = model.history[-1] if model.history else None
    claims = {
        "the registry's alias `serving`": (rig.registry.alias(name, SERVING), served),
        "the registry's alias `champion`": (rig.registry.alias(name, CHAMPION), served),
        "the version that answers": (rig.ask(name).headers.get("x-slipway-version"), served),
        "the weights": (model.weights, {deployment.generation: 100} if deployment else {}),
        "the canary": (model.canary, None),
        "the gateway's replicas of what serves": (own - known, set()),
        "the replicas that run": (running, kept),
        "the last rollout's outcome": (last is not None and last.outcome != "running", True),
    }
    return [f"{what}: {found!r}, expected {wanted!r}" for what, (found, wanted) in claims.items() if found != wanted]
