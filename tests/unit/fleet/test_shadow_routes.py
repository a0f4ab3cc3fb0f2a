"""Which requests are copied to a canary: pure routes."""

from typing import Any

import pytest

from pipeline.fleet.envoy_routes import CANARY_HEADER, route_table
from pipeline.fleet.state import Deployment, ModelFleet, Replica, Served

DIGEST = "0" * 64


def deployment(generation: int) -> Deployment:
    replica = Replica(id=f"replica-m-v{generation}-g{generation}-0", port=generation)
    return Deployment(
        version=str(generation),
        generation=generation,
        bundle_digest=DIGEST,
        replicas=(replica,),
        ready=True,
        routed=True,
    )


def fleet(**values: Any) -> ModelFleet:
    model = ModelFleet(
        name="m",
        generation=2,
        serving=Served(version="1", generation=1, deployment=1),
        canary=Served(version="2", generation=2, deployment=2),
        weights={1: 100},
        deployments=(deployment(1), deployment(2)),
    )
    return model.changed(**values)


def routes(model: ModelFleet) -> list[dict[str, Any]]:
    host = route_table({"m": model}, (), "secret")["virtual_hosts"][0]
    return [found for found in host["routes"] if "route" in found]


def test_shared_traffic_is_copied_and_forced_traffic_is_not() -> None:
    """Half of it, to the canary's cluster."""
    found = routes(fleet(shadow=50))
    for route in found:
        forced = any(header["name"] == CANARY_HEADER for header in route["match"]["headers"])
        mirrors = route["route"].get("request_mirror_policies", [])
        assert [mirror["cluster"] for mirror in mirrors] == ([] if forced else ["m.g2"])
        for mirror in mirrors:
            assert mirror["runtime_fraction"]["default_value"] == {"numerator": 50, "denominator": "HUNDRED"}
    assert len(found) > 2


@pytest.mark.parametrize("values", [{"shadow": 0}, {"shadow": 50, "canary": None}])
def test_without_a_canary_in_the_shadow_nothing_is_copied(values: dict[str, Any]) -> None:
    """Whatever an earlier rollout left behind."""
    assert not any("request_mirror_policies" in found["route"] for found in routes(fleet(**values)))
