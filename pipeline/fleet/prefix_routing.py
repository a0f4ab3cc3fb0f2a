"""Requests that begin alike go to the same replica, which has their beginning in its cache; one that has more than its
share passes on what comes. Pure: nothing here reads or writes but the Lua file.

The hash is Envoy's Maglev with bounded loads (Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads,
arXiv:1608.01350), over what prefix.lua says of the body. It chooses among the replicas of a version alone: weights and
sessions choose the version, with the route's hash policy.
https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/extensions/load_balancing_policies/maglev/v3/maglev.proto
"""

from pathlib import Path
from typing import Any

Json = dict[str, Any]

HEADER = "x-slipway-prefix"
SCRIPT = Path(__file__).with_name("prefix.lua")
FILTER = "slipway.prefix"
BALANCE_FACTOR = 125
"""Per cent of the replicas' mean number of open requests that one may have before others take what comes."""


def http_filter() -> Json:
    """After the filter that finds the model: routes say in their metadata whether it is to do anything."""
    kind = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"
    return {
        "name": FILTER,
        "typed_config": {"@type": kind, "default_source_code": {"inline_string": SCRIPT.read_text()}},
    }


def route_metadata() -> Json:
    return {"metadata": {"filter_metadata": {FILTER: {"by_prefix": True}}}}


def balancing() -> Json:
    """A cluster's."""
    hashing = {
        "hash_balance_factor": BALANCE_FACTOR,
        "hash_policy": [{"header": {"header_name": HEADER}}],
    }
    kind = "type.googleapis.com/envoy.extensions.load_balancing_policies.maglev.v3.Maglev"
    extension = {
        "name": "envoy.load_balancing_policies.maglev",
        "typed_config": {"@type": kind, "consistent_hashing_lb_config": hashing},
    }
    return {"load_balancing_policy": {"policies": [{"typed_extension_config": extension}]}}
