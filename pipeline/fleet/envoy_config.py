"""Envoy's configuration as plain dictionaries, made from the fleet's state. Pure: nothing here reads or writes.

One listener, one route table, and one cluster for each deployment, named `<model>.g<generation>`. Moving traffic
changes weights in the route table; a cluster's endpoints change only when its fallback does. Field names are those
of Envoy's v3 API (https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/api).
"""

import json
from typing import Any

from pipeline.fleet.state import Deployment, ModelFleet

Json = dict[str, Any]

API = "type.googleapis.com/envoy"
FILTERS = f"{API}.extensions.filters.http"
MAX_BODY_BYTES = 1 << 20
COMPLETION_PATHS = ("/v1/chat/completions", "/v1/completions")
HEALTH_PATH = "/healthz"
CLIENT = "client"
PROBE_CLIENT = "slipway-probe"
"""Whose key may force a version with `x-slipway-canary`. The gateway writes `x-client-id` itself, from the key."""
CANARY_HEADER = "x-slipway-canary"
SESSION_HEADER = "x-slipway-session"
"""Requests that name the same session stay on one version while the weights rise."""
RETRIED_STATUS = (500, 503)
"""What a replica answers that has failed or is about to end. Tried again on another one, so that a bad canary's
errors are counted against it and yet reach no client while the stable version can answer."""
METADATA = "slipway"
NO_MODEL, BAD_BODY = "slipway:no-model", "slipway:bad-body"
"""No model's name holds a colon."""


def cluster_name(model: str, generation: int) -> str:
    return f"{model}.g{generation}"


# --- listener ----------------------------------------------------------------------------------------------------


def listener(bound: Json, access_log_path: str, xds_path: str) -> Json:
    """The gateway's only listener, at the address `bound`."""
    manager = {
        "@type": f"{API}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "main",
        "rds": {"route_config_name": "main", "config_source": watched(f"{xds_path}/rds.json", xds_path)},
        "http_filters": http_filters(),
        "normalize_path": True,
        "merge_slashes": True,
        "use_remote_address": True,
        "always_set_request_id_in_response": True,
        "delayed_close_timeout": "0.05s",
        "stream_idle_timeout": "300s",
        "request_timeout": "60s",
        "common_http_protocol_options": {"idle_timeout": "600s", "headers_with_underscores_action": "REJECT_REQUEST"},
        "server_header_transformation": "PASS_THROUGH",
        "local_reply_config": {"mappers": local_replies()},
        "access_log": [access_log(access_log_path)],
    }
    return {
        "@type": f"{API}.config.listener.v3.Listener",
        "name": "main",
        "address": bound,
        "per_connection_buffer_limit_bytes": 2 * MAX_BODY_BYTES,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def http_filters() -> list[Json]:
    """Key first, then size, then the model's name out of the body, then routing."""
    rule = {
        "selectors": [{"key": "model"}],
        "on_present": {"metadata_namespace": METADATA, "key": "model", "type": "STRING"},
        "on_missing": {"metadata_namespace": METADATA, "key": "model", "value": NO_MODEL},
        "on_error": {"metadata_namespace": METADATA, "key": "model", "value": BAD_BODY},
    }
    return [
        _filter("envoy.filters.http.api_key_auth", "api_key_auth.v3.ApiKeyAuth"),
        _filter("envoy.filters.http.buffer", "buffer.v3.Buffer", max_request_bytes=MAX_BODY_BYTES),
        _filter(
            "envoy.filters.http.json_to_metadata",
            "json_to_metadata.v3.JsonToMetadata",
            request_rules={"rules": [rule], "allow_empty_content_type": True, "allow_content_types_regex": ANY_TYPE},
        ),
        _filter("envoy.filters.http.router", "router.v3.Router"),
    ]


ANY_TYPE = {"regex": ".*"}
"""Clients that forget the content type are served as the engine itself would serve them."""


def _filter(name: str, kind: str, **fields: Any) -> Json:
    return {"name": name, "typed_config": {"@type": f"{FILTERS}.{kind}", **fields}}


def access_log(path: str) -> Json:
    """One JSON object a request. Never the body; of the model's name only the first 64 characters."""
    fields = {
        "ts": "%START_TIME(%s.%3f)%",
        "code": "%RESPONSE_CODE%",
        "duration_us": "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%",
        "client": "%REQ(X-CLIENT-ID)%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "path": "%REQ(:PATH):128%",
        "model": f"%DYNAMIC_METADATA({METADATA}:model):64%",
        "cluster": "%UPSTREAM_CLUSTER_RAW%",
        "version": "%RESP(X-SLIPWAY-VERSION)%",
        "generation": "%RESP(X-SLIPWAY-GENERATION)%",
        "upstream": "%UPSTREAM_HOST%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
    }
    return {
        "name": "access",
        "typed_config": {
            "@type": f"{API}.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path,
            "log_format": {"json_format": fields},
        },
    }


def local_replies() -> list[Json]:
    """Envoy's own plain-text refusals in the form that OpenAI's clients read."""
    return [
        _reply(_status(401), "missing or unknown API key: send `Authorization: Bearer KEY`", "invalid_api_key"),
        _reply(_status(413), f"the request body is larger than {MAX_BODY_BYTES} bytes", "request_too_large"),
        _reply(
            _flags("UH", "UF", "UO", "URX", "UC", "NC", "LR", "UR"), "no replica can answer now: retry", "unavailable"
        ),
        _reply(_flags("UT", "SI"), "the replica did not answer in time", "timeout"),
    ]


def _reply(matches: Json, message: str, code: str) -> Json:
    return {
        "filter": matches,
        "body_format_override": {"json_format": error_body(message, code), "content_type": "application/json"},
    }


def _status(code: int) -> Json:
    value = {"default_value": code, "runtime_key": f"slipway.status_{code}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _flags(*flags: str) -> Json:
    return {"response_flag_filter": {"flags": list(flags)}}


def error_body(message: str, code: str) -> Json:
    """OpenAI's error form."""
    kind = "server_error" if code in ("unavailable", "timeout", "nothing_served") else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


# --- routes ------------------------------------------------------------------------------------------------------


def route_table(models: dict[str, ModelFleet], keys: dict[str, str]) -> Json:
    """Which request goes where. `keys` gives each client's API key."""
    serving = {name: model for name, model in sorted(models.items()) if model.weights}
    completions = [route for path in COMPLETION_PATHS for route in completion_routes(path, serving)]
    health = {**_exactly(HEALTH_PATH, "GET"), **_answer(200, {"status": "ok", "models": list(serving)})}
    health["typed_per_filter_config"] = {
        "envoy.filters.http.api_key_auth": {"@type": f"{API}.config.route.v3.FilterConfig", "disabled": True}
    }
    listing = [{"id": name, "object": "model", "owned_by": "slipway"} for name in serving]
    refusal = error_body(f"no such path here; there are {', '.join(COMPLETION_PATHS)} and /v1/models", "unknown_path")
    host = {
        "name": "main",
        "domains": ["*"],
        "routes": [
            health,
            {**_exactly("/v1/models", "GET"), **_answer(200, {"object": "list", "data": listing})},
            *completions,
            {"match": {"prefix": "/"}, **_answer(404, refusal)},
        ],
        "typed_per_filter_config": {"envoy.filters.http.api_key_auth": api_keys(keys)},
        "request_headers_to_remove": ["x-slipway-version", "x-slipway-model", "x-slipway-generation"],
    }
    return {
        "@type": f"{API}.config.route.v3.RouteConfiguration",
        "name": "main",
        "virtual_hosts": [host],
        "max_direct_response_body_size_bytes": 1 << 20,
    }


def api_keys(keys: dict[str, str]) -> Json:
    """A key in any of the client's requests becomes `x-client-id`; whatever the client sent there is overwritten."""
    return {
        "@type": f"{FILTERS}.api_key_auth.v3.ApiKeyAuthPerRoute",
        "credentials": [{"key": key, "client": client} for client, key in sorted(keys.items())],
        "key_sources": [{"header": "Authorization"}],
        "forwarding": {"header": "x-client-id", "hide_credentials": True},
    }


def completion_routes(path: str, serving: dict[str, ModelFleet]) -> list[Json]:
    """The routes of one path: each model's, then a clear refusal of every other request."""
    if not serving:
        nothing = error_body("no model is served yet: release one, then retry", "nothing_served")
        return [{**_exactly(path, "POST"), **_answer(503, nothing)}]
    routes: list[Json] = []
    for model in serving.values():
        routes += model_routes(path, model)
    known = ", ".join(serving)
    for value, message, code in (
        (NO_MODEL, f"the request names no `model`; served here: {known}", "missing_model"),
        (BAD_BODY, "the request's body is no JSON object", "bad_request"),
    ):
        routes.append({"match": _with_model(path, value), **_answer(400, error_body(message, code))})
    unknown = error_body(f"this model is not served here; served here: {known}", "model_not_found")
    routes.append({**_exactly(path, "POST"), **_answer(404, unknown)})
    return routes


def model_routes(path: str, model: ModelFleet) -> list[Json]:
    """A forced route for probes to each side, and the weighted one for everybody."""
    routes = []
    for word, side in (("always", model.canary), ("never", model.serving)):
        if side is not None:
            headers = [_header("x-client-id", PROBE_CLIENT), _header(CANARY_HEADER, word)]
            action = {"cluster": cluster_name(model.name, side.deployment), **_route_action()}
            routes.append({"match": _with_model(path, model.name, headers), "route": action})
    clusters = [
        {"name": cluster_name(model.name, generation), "weight": weight}
        for generation, weight in sorted(model.weights.items())
        if weight
    ]
    action = {
        "weighted_clusters": {"clusters": clusters, "use_hash_policy": True},
        "hash_policy": [{"header": {"header_name": SESSION_HEADER}}],
        **_route_action(),
    }
    return [*routes, {"match": _with_model(path, model.name), "route": action}]


def _route_action() -> Json:
    """No deadline on a stream that flows; a retry on another host for what has not begun to answer.

    `reset` may run a request twice: generating a completion again does no harm.
    """
    return {
        "timeout": "0s",
        "idle_timeout": "300s",
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset,retriable-status-codes",
            "retriable_status_codes": list(RETRIED_STATUS),
            "num_retries": 3,
            "per_try_idle_timeout": "120s",
            "host_selection_retry_max_attempts": 5,
            "retry_host_predicate": [
                _extension(
                    "envoy.retry_host_predicates.previous_hosts", "retry.host.previous_hosts.v3.PreviousHostsPredicate"
                )
            ],
            "retry_priority": _extension(
                "envoy.retry_priorities.previous_priorities",
                "retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
                update_frequency=1,
            ),
            "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
        },
    }


def _extension(name: str, kind: str, **fields: Any) -> Json:
    return {"name": name, "typed_config": {"@type": f"{API}.extensions.{kind}", **fields}}


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


# --- clusters and endpoints --------------------------------------------------------------------------------------


def cluster(model: str, generation: int, eds_path: str, *, has_fallback: bool) -> Json:
    """The replicas of one deployment, watched actively (`/health`) and passively (outliers)."""
    name = cluster_name(model, generation)
    return {
        "@type": f"{API}.config.cluster.v3.Cluster",
        "name": name,
        "type": "EDS",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "eds_cluster_config": {"eds_config": watched(f"{eds_path}/{name}.json", eds_path)},
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}, "update_merge_window": "0s"},
        "ignore_health_on_host_removal": True,
        "health_checks": [
            {
                "timeout": "5s",
                "interval": "1s",
                "no_traffic_interval": "1s",
                "unhealthy_threshold": 3,
                "healthy_threshold": 1,
                "http_health_check": {"path": "/health"},
            }
        ],
        "outlier_detection": {
            "consecutive_5xx": 5,
            "consecutive_gateway_failure": 3,
            "interval": "1s",
            "base_ejection_time": "3s",
            "max_ejection_time": "15s",
            "max_ejection_percent": 100 if has_fallback else 50,
            "successful_active_health_check_uneject_host": False,
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 4096,
                    "max_pending_requests": 4096,
                    "max_requests": 4096,
                    "max_retries": 4096,
                    "retry_budget": {"budget_percent": {"value": 100}, "min_retry_concurrency": 100},
                }
            ]
        },
    }


def endpoints(model: str, deployment: Deployment, fallback: Deployment | None) -> Json:
    """Where a deployment's replicas listen; `fallback`'s take over when none of them is healthy."""
    tiers = [deployment] if fallback is None else [deployment, fallback]
    return {
        "@type": f"{API}.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": cluster_name(model, deployment.generation),
        "policy": {"overprovisioning_factor": 200},
        "endpoints": [
            {
                "priority": priority,
                "lb_endpoints": [
                    {"endpoint": {"address": address(replica.host, replica.port)}} for replica in tier.replicas
                ],
            }
            for priority, tier in enumerate(tiers)
        ],
    }


def fallback_of(model: ModelFleet, deployment: Deployment) -> Deployment | None:
    """A canary falls back on what is serving, and what is serving on the version before it while that is warm."""
    generation = deployment.generation
    if model.serving and generation != model.serving.deployment:
        return model.deployment(model.serving.deployment)
    if model.previous and generation != model.previous.deployment:
        return model.deployment(model.previous.deployment)
    return None


# --- bootstrap ---------------------------------------------------------------------------------------------------


def bootstrap(admin: Json, xds_path: str) -> Json:
    """What Envoy starts with; `admin` is the address of its own interface."""
    return {
        "node": {"id": "gateway", "cluster": "slipway"},
        "admin": {"address": admin},
        "dynamic_resources": {
            "lds_config": watched(f"{xds_path}/lds.json", xds_path),
            "cds_config": watched(f"{xds_path}/cds.json", xds_path),
        },
        "layered_runtime": {"layers": [{"name": "admin", "admin_layer": {}}]},
        "overload_manager": {
            "resource_monitors": [
                _extension(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=20000,
                )
            ]
        },
    }


def discovery_response(version: str, resources: list[Json]) -> Json:
    """What Envoy reads from an xDS file."""
    return {"version_info": version, "resources": resources}


def watched(path: str, folder: str) -> Json:
    """A file that is read anew when something in `folder` is replaced."""
    return {
        "resource_api_version": "V3",
        "path_config_source": {"path": path, "watched_directory": {"path": folder}},
    }


def address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}
