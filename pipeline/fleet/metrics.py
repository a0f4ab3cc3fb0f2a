"""The fleet and its rollouts in figures for Prometheus, made from the fleet's state. Pure.

Nothing is counted here where traffic flows: what clients asked is counted by the gateway, what the engines did by vLLM
(docs/observability.md). The gateway counts attempts at each replica, too, but tells Prometheus of whole clusters only,
in which a canary's replicas stand beside those that it falls back on; so its counts of replicas are passed on here.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

from pipeline.fleet.analysis.live import FleetView, Judgement
from pipeline.fleet.envoy_config import Json, cluster_name
from pipeline.fleet.exposition import Family
from pipeline.fleet.state import Rollout, outcome_of
from pipeline.fleet.views import ModelView, address_of, role_of

HEALTH = {True: "healthy", False: "unhealthy", None: "unknown"}
OUTCOMES = ("promoted", "failed", "rolled back", "unchanged", "superseded")


def families(fleet: FleetView, clusters: Json | None) -> list[Family]:
    """Everything that the exporter says.

    Args:
        clusters: Envoy's `/clusters?format=json`; None if it does not answer.
    """
    models = list(fleet.models.values())
    damaged = Family("slipway_fleet_file_damaged", "gauge", "1 for a file of the fleet that cannot be read.")
    for found in fleet.damaged:
        damaged.add(1, model=found.model, file=found.file)
    return [
        *_fleet(models),
        *_attempts(models, clusters or {}),
        *_rollouts(models),
        *_judged(models, fleet.judgements),
        _ended(models),
        damaged,
    ]


def _fleet(models: list[ModelView]) -> Iterator[Family]:
    info = Family("slipway_fleet_serving_info", "gauge", "1, with what serves as labels.")
    generation = Family("slipway_fleet_generation", "gauge", "The newest rollout's number.")
    deployments = Family("slipway_fleet_deployment_info", "gauge", "1, with what a deployment is as labels.")
    traffic = Family("slipway_fleet_traffic_ratio", "gauge", "Share of the model's traffic, 0 to 1.")
    replicas = Family(
        "slipway_fleet_replicas", "gauge", "Replicas by what they are for and how the gateway finds them."
    )
    healthy = Family("slipway_fleet_replica_healthy", "gauge", "1 if the gateway finds the replica healthy, else 0.")
    aside = Family("slipway_fleet_replica_aside", "gauge", "1 while the replica is put aside, with why.")
    for model in models:
        generation.add(model.generation, model=model.name)
        if model.serving:
            info.add(1, model=model.name, version=model.serving.version, generation=str(model.serving.generation))
        for deployment in sorted({replica.generation for replica in model.replicas}):
            labels = _deployment(model, deployment)
            deployments.add(1, **labels)
            traffic.add(model.weights.get(deployment, 0) / 100, **labels)
            for health, word in HEALTH.items():
                replicas.add(_count(model, deployment, health), **labels, health=word)
        for replica in model.replicas:
            named = {"model": model.name, "version": replica.version, "replica": replica.id}
            if replica.healthy is not None:
                healthy.add(replica.healthy, **named)
            if replica.aside is not None:
                aside.add(1, **named, kind=replica.aside.kind)
    yield from (info, generation, deployments, traffic, replicas, healthy, aside)


def _deployment(model: ModelView, generation: int) -> dict[str, str]:
    """The labels of one generation's replicas: all of one version, there for one thing."""
    return {
        "model": model.name,
        "version": next(replica.version for replica in model.replicas if replica.generation == generation),
        "generation": str(generation),
        "role": role_of(model, generation),
        "envoy_cluster_name": cluster_name(model.name, generation).replace(".", "/"),
    }


def _count(model: ModelView, generation: int, healthy: bool | None) -> int:
    return sum((replica.generation, replica.healthy) == (generation, healthy) for replica in model.replicas)


def _attempts(models: list[ModelView], clusters: Json) -> Iterator[Family]:
    """Each replica's in each cluster by itself: the sum would fall when a cluster goes."""
    attempts = Family("slipway_replica_attempts_total", "counter", "Requests that the gateway sent to the replica.")
    errors = Family("slipway_replica_errors_total", "counter", "Those answered by 5xx, reset, or not connected.")
    known = {f"{replica.host}:{replica.port}": (model.name, replica) for model in models for replica in model.replicas}
    for cluster in clusters.get("cluster_statuses", ()):
        for host in cluster.get("host_statuses", ()):
            name, replica = known.get(address_of(host), ("", None))
            if replica is None:
                continue
            counts = {stat["name"]: int(stat.get("value", 0)) for stat in host.get("stats", ())}
            failed = counts.get("rq_error", 0)
            labels = {
                "model": name,
                "version": replica.version,
                "generation": str(replica.generation),
                "replica": replica.id,
                "envoy_cluster_name": str(cluster["name"]).replace(".", "/"),
            }
            attempts.add(max(counts.get("rq_total", 0), counts.get("rq_success", 0) + failed), **labels)
            errors.add(failed, **labels)
    yield from (attempts, errors)


def _rollouts(models: list[ModelView]) -> Iterator[Family]:
    running = Family("slipway_rollout_running", "gauge", "1 while a rollout of the model is under way, else 0.")
    started = Family("slipway_rollout_started_timestamp_seconds", "gauge", "When the running rollout began.")
    step = Family("slipway_rollout_step", "gauge", "The traffic step that the running rollout is at, from 1.")
    paused = Family("slipway_rollout_paused", "gauge", "1 while a person holds the running rollout, else 0.")
    took = Family("slipway_rollout_last_duration_seconds", "gauge", "How long the last rollout took that ended.")
    for model in models:
        running.add(_is_under_way(model), model=model.name)
        if _is_under_way(model):
            newest = model.history[-1]
            paused.add(newest.paused is not None, model=model.name)
            started.add(newest.started_at, model=model.name)
            step.add(newest.step + 1, model=model.name)
        last = _last_ended(model)
        if last is not None and last.ended_at is not None:
            outcome = last.outcome.replace(" ", "_")
            took.add(last.ended_at - last.started_at, model=model.name, version=last.version, outcome=outcome)
    yield from (running, paused, started, step, took)


def _judged(models: list[ModelView], judgements: Mapping[str, Judgement]) -> Iterator[Family]:
    """What the running rollouts see."""
    requests = Family("slipway_rollout_client_requests", "gauge", "Clients' requests to the canary in this step.")
    probes = Family("slipway_rollout_probes", "gauge", "Probes of the canary in this step.")
    figures = Family("slipway_rollout_comparison", "gauge", "Canary and stable, and the interval of their difference.")
    verdicts = Family("slipway_rollout_comparison_verdict", "gauge", "1 for what a comparison has come to.")
    for found in (judgements[model.name] for model in models if _is_under_way(model) and model.name in judgements):
        labels = {"model": found.model, "version": found.version}
        requests.add(found.client_requests, **labels)
        probes.add(found.probes, **labels)
        for one in found.comparisons:
            named = {**labels, "measure": one.measure}
            verdicts.add(1, **named, verdict=one.verdict)
            for figure in ("canary", "stable", "low", "high", "margin"):
                value: float | None = getattr(one, figure)
                if value is not None:
                    figures.add(value, **named, unit=one.unit, figure=figure)
    yield from (requests, probes, figures, verdicts)


def _ended(models: list[ModelView]) -> Family:
    """Of all times: the state counts what it forgets. Every outcome of a model is there, so that its first one is a
    step up from 0."""
    found = Family("slipway_rollouts_total", "counter", "Rollouts that ended.")
    for model in models:
        counts = Counter(model.forgotten)
        counts.update(outcome_of(rollout, model.generation) for rollout in model.history)
        for outcome in OUTCOMES:
            found.add(counts[outcome], model=model.name, outcome=outcome.replace(" ", "_"))
    return found


def _is_under_way(model: ModelView) -> bool:
    return bool(model.history) and model.history[-1].outcome == "running"


def _last_ended(model: ModelView) -> Rollout | None:
    return next((rollout for rollout in reversed(model.history) if rollout.ended_at is not None), None)
