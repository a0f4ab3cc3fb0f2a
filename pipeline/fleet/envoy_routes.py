"""Which request goes where: Envoy's route table, made from the fleet's state. Pure: nothing here reads or writes.

A request's model is what its body names (`json_to_metadata`, see envoy_config); each model's routes share the traffic
between its deployments by weight. Moving traffic changes nothing but this table.
"""

import json
import re

from pipeline.fleet import prefix_routing
from pipeline.fleet.doors import filters as doors
from pipeline.fleet.doors import replica_door
from pipeline.fleet.doors.clients import Client
from pipeline.fleet.doors.keys import PROBE_CLIENT as PROBE_CLIENT
from pipeline.fleet.envoy_config import (
    API,
    BAD_BODY,
    METADATA,
    NO_MODEL,
    Json,
    cluster_name,
    error_body,
    extension,
)
from pipeline.fleet.state import ModelFleet

COMPLETION_PATHS = ("/v1/chat/completions", "/v1/completions")
HEALTH_PATH = "/healthz"
CANARY_HEADER = "x-slipway-canary"
"""Counts from clients that may choose. The gateway writes `x-client-id` itself, from the key."""
SESSION_HEADER = "x-slipway-session"
"""Requests that name the same session stay on one version while the weights rise."""
ANSWERS = r"(application/json|text/event-stream)(;.*)?"
"""The types of every answer of a replica. One of another type, or of a version that is not served, is no answer, and
is tried again on another replica."""
RETRIED_STATUS = (500, 503)
"""What a replica answers that has failed or is about to end. Tried again on another one, so that a bad canary's
errors are counted against it and yet reach no client while the stable version can answer."""


def route_table(models: dict[str, ModelFleet], clients: tuple[Client, ...], door: str) -> Json:
    """Which request goes where, and who may send it. `door` is the secret that opens replicas."""
    serving = {name: model for name, model in sorted(models.items()) if model.weights}
    choosers = tuple(client.name for client in clients if client.may_choose)
    completions = [route for path in COMPLETION_PATHS for route in completion_routes(path, serving, choosers)]
    health = {**_exactly(HEALTH_PATH, "GET"), **_answer(200, {"status": "ok", "models": list(serving)})}
    health["typed_per_filter_config"] = {
        doors.KEY_FILTER: {"@type": f"{API}.config.route.v3.FilterConfig", "disabled": True}
    }
    listing = [{"id": name, "object": "model", "owned_by": "slipway"} for name in serving]
    refusal = error_body(f"no such path here; there are {', '.join(COMPLETION_PATHS)} and /v1/models", "unknown_path")
    host = {
        "name": "main",
        "domains": ["*"],
        "routes": [
            health,
            {**_exactly("/v1/models", "GET"), **_answer(200, {"object": "list", "data": listing})},
            *[route for path in COMPLETION_PATHS for route in exhausted_routes(path, clients)],
            *completions,
            {"match": {"prefix": "/"}, **_answer(404, refusal)},
        ],
        "typed_per_filter_config": doors.per_host(clients),
        "request_headers_to_add": [
            {
                "header": {"key": replica_door.HEADER, "value": door},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ],
    }
    return {
        "@type": f"{API}.config.route.v3.RouteConfiguration",
        "name": "main",
        "virtual_hosts": [host],
        "max_direct_response_body_size_bytes": 1 << 20,
    }


def exhausted_routes(path: str, clients: tuple[Client, ...]) -> list[Json]:
    """A refusal for clients that have used up today's tokens; the script says when to come again."""
    names = tuple(client.name for client in clients if client.exhausted)
    if not names:
        return []
    answer = _answer(429, error_body(doors.BUDGET_MESSAGE, "budget_exhausted"))
    answer["response_headers_to_add"].append({"header": {"key": doors.BUDGET_HEADER, "value": "exhausted"}})
    return [
        {
            "match": {"path": path, "headers": [_header(":method", "POST"), _one_of(doors.CLIENT_HEADER, names)]},
            **answer,
        }
    ]


def completion_routes(path: str, serving: dict[str, ModelFleet], choosers: tuple[str, ...]) -> list[Json]:
    """The routes of one path: each model's, then a clear refusal of every other request."""
    if not serving:
        nothing = error_body("no model is served yet: release one, then retry", "nothing_served")
        return [{**_exactly(path, "POST"), **_answer(503, nothing)}]
    routes: list[Json] = []
    for model in serving.values():
        routes += model_routes(path, model, choosers)
    known = ", ".join(serving)
    for value, message, code in (
        (NO_MODEL, f"the request names no `model`; served here: {known}", "missing_model"),
        (BAD_BODY, "the request's body is no JSON object", "bad_request"),
    ):
        routes.append({"match": _with_model(path, value), **_answer(400, error_body(message, code))})
    unknown = error_body(f"this model is not served here; served here: {known}", "model_not_found")
    routes.append({**_exactly(path, "POST"), **_answer(404, unknown)})
    return routes


def model_routes(path: str, model: ModelFleet, choosers: tuple[str, ...] = (PROBE_CLIENT,)) -> list[Json]:
    """A forced route to each side for clients that may choose, and the weighted one for everybody."""
    routes, looks = [], prefix_routing.route_metadata() if by_prefix(model) else {}
    for word, side in (("always", model.canary), ("never", model.serving)):
        if side is not None:
            headers = [_one_of(doors.CLIENT_HEADER, choosers), _header(CANARY_HEADER, word)]
            action = {"cluster": cluster_name(model.name, side.deployment), **_route_action(model)}
            routes.append({"match": _with_model(path, model.name, headers), "route": action, **looks})
    clusters = [
        {"name": cluster_name(model.name, generation), "weight": weight}
        for generation, weight in sorted(model.weights.items())
        if weight
    ]
    action = {
        "weighted_clusters": {"clusters": clusters, "use_hash_policy": True},
        "hash_policy": [{"header": {"header_name": SESSION_HEADER}}],
        **_route_action(model),
        **_mirror(model),
    }
    return [*routes, {"match": _with_model(path, model.name), "route": action, **looks}]


def by_prefix(model: ModelFleet) -> bool:
    return any(deployment.routed and deployment.routing == "prefix" for deployment in model.deployments)


def _mirror(model: ModelFleet) -> Json:
    """Copies for the canary, whose answers Envoy throws away. Routes that force a side have none."""
    if not (model.shadow and model.canary):
        return {}
    share = {"numerator": model.shadow, "denominator": "HUNDRED"}
    cluster = cluster_name(model.name, model.canary.deployment)
    return {"request_mirror_policies": [{"cluster": cluster, "runtime_fraction": {"default_value": share}}]}


def _route_action(model: ModelFleet) -> Json:
    """No deadline on a stream that flows; a retry on another host for what has not begun to answer.

    `reset` may run a request twice: generating a completion again does no harm.
    """
    versions = sorted({re.escape(deployment.version) for deployment in model.deployments if deployment.routed})
    return {
        "timeout": "0s",
        "idle_timeout": "300s",
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset,retriable-status-codes,retriable-headers",
            "retriable_status_codes": list(RETRIED_STATUS),
            "retriable_headers": [_unlike("x-slipway-version", "|".join(versions)), _unlike("content-type", ANSWERS)],
            "num_retries": 3,
            "per_try_idle_timeout": "120s",
            "host_selection_retry_max_attempts": 5,
            "retry_host_predicate": [
                extension(
                    "envoy.retry_host_predicates.previous_hosts", "retry.host.previous_hosts.v3.PreviousHostsPredicate"
                )
            ],
            "retry_priority": extension(
                "envoy.retry_priorities.previous_priorities",
                "retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
                update_frequency=1,
            ),
            "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
        },
    }


def _unlike(name: str, pattern: str) -> Json:
    """Matches a header that is missing, or anything but `pattern`."""
    value = {"safe_regex": {"regex": pattern}}
    return {"name": name, "string_match": value, "invert_match": True, "treat_missing_header_as_empty": True}


def _exactly(path: str, method: str) -> Json:
    return {"match": {"path": path, "headers": [_header(":method", method)]}}


def _with_model(path: str, name: str, headers: list[Json] | None = None) -> Json:
    matcher = {"filter": METADATA, "path": [{"key": "model"}], "value": {"string_match": {"exact": name}}}
    return {
        "path": path,
        "headers": [_header(":method", "POST"), *(headers or [])],
        "dynamic_metadata": [matcher],
    }


def _header(name: str, value: str) -> Json:
    return {"name": name, "string_match": {"exact": value}}


def _one_of(name: str, values: tuple[str, ...]) -> Json:
    """`values` are names of clients, which hold nothing that a regular expression reads as anything else."""
    return {"name": name, "string_match": {"safe_regex": {"regex": "|".join(values)}}}


def _answer(status: int, body: Json) -> Json:
    text = json.dumps(body) + "\n"
    return {
        "direct_response": {"status": status, "body": {"inline_string": text}},
        "response_headers_to_add": [
            {
                "header": {"key": "content-type", "value": "application/json"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ],
    }
