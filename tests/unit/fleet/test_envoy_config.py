"""From the fleet's state to Envoy's configuration."""

import json

from pipeline.fleet import envoy_config as config
from pipeline.fleet.doors.clients import Client
from pipeline.fleet.envoy_routes import COMPLETION_PATHS, PROBE_CLIENT, model_routes, route_table
from pipeline.fleet.state import Aside, Deployment, ModelFleet, Replica, Served

DIGEST = "0" * 64
CLIENTS = (
    Client(name="client", digests=("1" * 64,)),
    Client(name="slipway-probe", digests=("2" * 64,), may_choose=True),
)


def deployment(generation: int, port: int) -> Deployment:
    replica = Replica(id=f"replica-m-v{generation}-g{generation}-0", port=port)
    return Deployment(
        version=str(generation), generation=generation, bundle_digest=DIGEST, replicas=(replica,), routed=True
    )


def served(generation: int) -> Served:
    return Served(version=str(generation), generation=generation, deployment=generation)


MODEL = ModelFleet(
    name="m",
    serving=served(1),
    canary=served(2),
    weights={1: 75, 2: 25},
    deployments=(deployment(1, 1001), deployment(2, 1002)),
)


def routes(models: dict[str, ModelFleet]) -> list[config.Json]:
    found: list[config.Json] = route_table(models, CLIENTS, "secret")["virtual_hosts"][0]["routes"]
    return found


def test_the_weights_become_weighted_clusters() -> None:
    """A deployment without weight is not named."""
    weighted = [route for route in routes({"m": MODEL}) if "weighted_clusters" in route.get("route", {})]
    assert [route["route"]["weighted_clusters"]["clusters"] for route in weighted] == [
        [{"name": "m.g1", "weight": 75}, {"name": "m.g2", "weight": 25}]
    ] * len(COMPLETION_PATHS)
    alone = model_routes("/v1/completions", MODEL.changed(weights={1: 100, 2: 0}))[-1]
    assert alone["route"]["weighted_clusters"]["clusters"] == [{"name": "m.g1", "weight": 100}]


def test_only_the_probes_client_has_forced_routes() -> None:
    """They come before the weighted one and match on the client that the key gave."""
    forced = model_routes("/v1/completions", MODEL)[:-1]
    assert [route["route"]["cluster"] for route in forced] == ["m.g2", "m.g1"]
    for route in forced:
        matched = {header["name"]: header["string_match"] for header in route["match"]["headers"]}
        assert matched["x-client-id"] == {"safe_regex": {"regex": PROBE_CLIENT}}


def test_a_canary_falls_back_on_what_serves_and_that_on_what_is_warm() -> None:
    """A rollback leaves nothing that falls back on the failed version."""
    stable, canary = MODEL.deployments
    assert config.fallback_of(MODEL, canary) == stable
    assert config.fallback_of(MODEL, stable) is None
    promoted = MODEL.changed(serving=served(2), canary=None, previous=served(1))
    assert config.fallback_of(promoted, canary) == stable
    tiers = config.endpoints("m", canary, stable)["endpoints"]
    ports = [tier["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"] for tier in tiers]
    assert ([tier["priority"] for tier in tiers], ports) == ([0, 1], [1002, 1001])


def test_before_anything_is_served_completions_answer_503() -> None:
    """With a message in OpenAI's form; a canary without weight changes nothing."""
    waiting = MODEL.changed(serving=None, weights={})
    for models in ({}, {"m": waiting}):
        answers = [
            route["direct_response"] for route in routes(models) if route["match"].get("path") in COMPLETION_PATHS
        ]
        assert {answer["status"] for answer in answers} == {503}
        assert json.loads(answers[0]["body"]["inline_string"])["error"]["code"] == "nothing_served"


def test_the_last_route_refuses_everything_else() -> None:
    """Whatever the method."""
    last = routes({"m": MODEL})[-1]
    assert (last["match"], last["direct_response"]["status"]) == ({"prefix": "/"}, 404)


def test_a_replica_that_is_put_aside_is_given_nothing_and_not_removed() -> None:
    """So that it may finish what it has begun."""
    good, bad = Replica(id="a", port=1), Replica(id="b", port=2, aside=Aside(kind="slow", reason="slow", since=1.0))
    two = deployment(1, 1).model_copy(update={"replicas": (good, bad)})
    found = config.endpoints("m", two, None)["endpoints"][0]["lb_endpoints"]
    assert [endpoint.get("health_status") for endpoint in found] == [None, "UNHEALTHY"]
    assert two.trusted == (good,)
    assert [MODEL.replica_weight(two, replica) for replica in (good, bad)] == [75.0, 0.0]


def test_an_answer_of_a_version_that_the_gateway_does_not_know_is_tried_again() -> None:
    """Both versions of a rollout are known; a name is taken literally."""
    odd = MODEL.with_deployment(deployment(2, 1002).model_copy(update={"version": "2.0"}))
    policy = model_routes("/v1/completions", odd)[-1]["route"]["retry_policy"]
    version, kind = policy["retriable_headers"]
    assert version["name"] == "x-slipway-version"
    assert version["string_match"] == {"safe_regex": {"regex": r"1|2\.0"}}
    assert kind["invert_match"]
    assert "retriable-headers" in policy["retry_on"]


def test_regions_are_priorities_and_come_before_the_fallback() -> None:
    """The preferred region of the deployment first, the fallback's last one last."""

    def in_two_regions(generation: int) -> Deployment:
        places = (("east", 1, 10 * generation + 2), ("west", 0, 10 * generation + 1))
        replicas = [Replica(id=f"r{port}", port=port, region=name, rank=rank) for name, rank, port in places]
        return deployment(generation, 1).model_copy(update={"replicas": tuple(replicas)})

    tiers = config.endpoints("m", in_two_regions(2), in_two_regions(1))["endpoints"]
    ports = [tier["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"] for tier in tiers]
    assert ports == [21, 22, 11, 12]
    assert [tier["priority"] for tier in tiers] == [0, 1, 2, 3]
    assert [tier["locality"]["region"] for tier in tiers] == ["west", "east"] * 2
