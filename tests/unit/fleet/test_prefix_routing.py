"""Which versions' requests go by how they begin."""

import json
from pathlib import Path

import pytest

from pipeline.fleet import envoy_config as config
from pipeline.fleet import prefix_routing
from pipeline.fleet.doors.filters import FORGED
from pipeline.fleet.envoy_routes import model_routes
from pipeline.fleet.gateway import Gateway
from pipeline.fleet.state import Deployment, ModelFleet, Replica, Served
from pipeline.stack.layout import Layout

PATH = "/v1/chat/completions"


def deployment(generation: int, routing: str) -> Deployment:
    replica = Replica(id=f"replica-{generation}", port=1000 + generation)
    return Deployment.model_validate(
        {
            "version": str(generation),
            "generation": generation,
            "bundle_digest": "0" * 64,
            "replicas": (replica,),
            "routed": True,
            "routing": routing,
        }
    )


def fleet(*routings: str) -> ModelFleet:
    """One that serves the first of them and tries the others."""
    deployments = tuple(deployment(number, routing) for number, routing in enumerate(routings, 1))
    return ModelFleet(
        name="m",
        serving=Served(version="1", generation=1, deployment=1),
        weights={found.generation: 100 // len(deployments) for found in deployments},
        deployments=deployments,
    )


def test_each_versions_own_recipe_decides_how_its_replicas_are_chosen(tmp_path: Path) -> None:
    """A canary that goes by prefixes stands beside a version that does not; both are written as Envoy's clusters."""
    layout = Layout(tmp_path)
    layout.create()
    layout.choose_ports()
    gateway = Gateway(layout)
    plain, hashed = gateway._clusters({"m": fleet("fewest_requests", "prefix")})
    assert (plain["name"], plain["lb_policy"]) == ("m.g1", "LEAST_REQUEST")
    assert "lb_policy" not in hashed
    (policy,) = hashed["load_balancing_policy"]["policies"]
    hashing = policy["typed_extension_config"]["typed_config"]["consistent_hashing_lb_config"]
    assert hashing["hash_policy"] == [{"header": {"header_name": prefix_routing.HEADER}}]
    assert hashing["hash_balance_factor"] > 100


@pytest.mark.parametrize(
    ("routings", "looks"),
    [(("fewest_requests",), False), (("fewest_requests", "prefix"), True), (("prefix",), True)],
)
def test_bodies_are_looked_into_only_where_a_version_goes_by_prefixes(routings: tuple[str, ...], looks: bool) -> None:
    """The script reads it from the metadata of the route, whichever side that leads to."""
    for route in model_routes(PATH, fleet(*routings)):
        assert (prefix_routing.FILTER in json.dumps(route.get("metadata", {}))) is looks


def test_prefixes_leave_the_choice_of_the_version_to_weights_and_sessions() -> None:
    """The route's own hash is of the session alone."""
    weighted = model_routes(PATH, fleet("prefix", "prefix"))[-1]["route"]
    assert prefix_routing.HEADER not in json.dumps(weighted)


def test_a_client_cannot_say_the_hash_itself() -> None:
    """The gateway takes it away before anything looks at it."""
    assert prefix_routing.HEADER in FORGED


def test_the_script_runs_where_the_model_is_known() -> None:
    """After the filter that reads it, since the route depends on it, and before the one that routes."""
    names = [found["name"] for found in config.http_filters()]
    assert names.index("envoy.filters.http.json_to_metadata") < names.index(prefix_routing.FILTER) < len(names) - 1
