"""Envoy's configuration as plain dictionaries, made from the fleet's state. Pure: nothing here reads or writes.

One listener, one route table (envoy_routes), and one cluster for each deployment, named `<model>.g<generation>`, whose
endpoints change only when its fallback does. Field names are those of Envoy's v3 API
(https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/api).
"""

from typing import Any

from pipeline.fleet import prefix_routing
from pipeline.fleet.doors import filters as doors
from pipeline.fleet.doors import tls
from pipeline.fleet.state import Deployment, ModelFleet, Replica

Json = dict[str, Any]

API = "type.googleapis.com/envoy"
FILTERS = f"{API}.extensions.filters.http"
MAX_BODY_BYTES = 1 << 20
MAX_EVENT_BYTES = 1 << 20
"""Of a stream: a longer one goes through uncounted."""
MAX_HEADERS_KIB = 32
HEADERS_TIMEOUT_S = 10
"""From a request's first byte to the end of its headers."""
REQUEST_TIMEOUT_S = 60
"""From a request's first byte to the end of its body."""
METADATA = "slipway"
STATS_FLUSH_S = 1
"""Envoy's histograms are so old at most."""
NO_MODEL, BAD_BODY = "slipway:no-model", "slipway:bad-body"
"""No model's name holds a colon."""


def cluster_name(model: str, generation: int) -> str:
    return f"{cluster_prefix(model)}{generation}"


def stat_name(model: str, generation: int) -> str:
    """Of a cluster, in Envoy's figures: a dot would end the name there."""
    return cluster_name(model, generation).replace(".", "/")


def cluster_prefix(model: str) -> str:
    """How the names of all clusters of a model begin. No model's name holds a dot."""
    return f"{model}.g"


# --- listener ----------------------------------------------------------------------------------------------------


def listener(bound: Json, access_log_path: str, xds_path: str, own: Json | None = None) -> Json:
    """The gateway's only listener, at the address `bound`.

    Args:
        own: with TLS, how connections of the stack's own programs are told (`doors.tls`); they alone stay plain.
    """
    manager = {
        "@type": f"{API}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "main",
        "rds": {"route_config_name": "main", "config_source": watched(f"{xds_path}/rds.json", xds_path)},
        "http_filters": http_filters(),
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "early_header_mutation_extensions": doors.early_mutations(),
        "use_remote_address": True,
        "always_set_request_id_in_response": True,
        "delayed_close_timeout": "0.05s",
        "stream_idle_timeout": "300s",
        "request_headers_timeout": f"{HEADERS_TIMEOUT_S}s",
        "request_timeout": f"{REQUEST_TIMEOUT_S}s",
        "max_request_headers_kb": MAX_HEADERS_KIB,
        "http2_protocol_options": {"max_concurrent_streams": 128, "initial_stream_window_size": 65536},
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
        **_filter_chains({"name": "http", "typed_config": manager}, own, f"{xds_path}/tls"),
    }


def _filter_chains(http: Json, own: Json | None, tls_path: str) -> Json:
    if own is None:
        return {"filter_chains": [{"filters": [http]}]}
    return tls.filter_chains(http, own, watched(f"{tls_path}/{tls.SECRET}.json", tls_path))


def http_filters() -> list[Json]:
    """Key and limits first, then size, then the model's name out of the body, then routing."""
    rule = {
        "selectors": [{"key": "model"}],
        "on_present": {"metadata_namespace": METADATA, "key": "model", "type": "STRING"},
        "on_missing": {"metadata_namespace": METADATA, "key": "model", "value": NO_MODEL},
        "on_error": {"metadata_namespace": METADATA, "key": "model", "value": BAD_BODY},
    }
    return [
        *doors.key_filters(),
        _filter("envoy.filters.http.buffer", "buffer.v3.Buffer", max_request_bytes=MAX_BODY_BYTES),
        _filter(
            "envoy.filters.http.json_to_metadata",
            "json_to_metadata.v3.JsonToMetadata",
            request_rules={"rules": [rule], "allow_empty_content_type": True, "allow_content_types_regex": ANY_TYPE},
        ),
        prefix_routing.http_filter(),
        _filter("envoy.filters.http.sse_to_metadata", "sse_to_metadata.v3.SseToMetadata", response_rules=token_rules()),
        _filter("envoy.filters.http.router", "router.v3.Router"),
    ]


ANY_TYPE = {"regex": ".*"}
"""Clients that forget the content type are served as the engine itself would serve them."""


def token_rules() -> Json:
    """The counts of a stream, from each of its events: the last ones that came by are in the access log, also where a
    client hung up in the middle. Whole answers have them in headers (`replica_usage`)."""
    rules = [
        {
            "rule": {
                "selectors": [{"key": "usage"}, {"key": name}],
                "on_present": {"metadata_namespace": METADATA, "key": name, "type": "NUMBER"},
            }
        }
        for name in ("prompt_tokens", "completion_tokens")
    ]
    kind = f"{API}.extensions.content_parsers.json.v3.JsonContentParser"
    parser = {"name": "envoy.content_parsers.json", "typed_config": {"@type": kind, "rules": rules}}
    return {"content_parser": parser, "max_event_size": MAX_EVENT_BYTES}


def _filter(name: str, kind: str, **fields: Any) -> Json:
    return {"name": name, "typed_config": {"@type": f"{FILTERS}.{kind}", **fields}}


def access_log(path: str) -> Json:
    """One JSON object a request. Never the body; of the model's name only the first 64 characters."""
    fields = {
        "ts": "%START_TIME(%s.%3f)%",
        "code": "%RESPONSE_CODE%",
        "duration_us": "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%",
        "first_byte_us": "%COMMON_DURATION(DS_RX_BEG:DS_TX_BEG:us)%",
        "client": "%REQ(X-CLIENT-ID)%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "path": "%REQ(:PATH):128%",
        "model": f"%DYNAMIC_METADATA({METADATA}:model):64%",
        "cluster": "%UPSTREAM_CLUSTER_RAW%",
        "version": "%RESP(X-SLIPWAY-VERSION)%",
        "generation": "%RESP(X-SLIPWAY-GENERATION)%",
        "content_type": "%RESP(CONTENT-TYPE)%",
        "prompt_tokens": "%RESP(X-SLIPWAY-PROMPT-TOKENS)%",
        "completion_tokens": "%RESP(X-SLIPWAY-COMPLETION-TOKENS)%",
        "stream_prompt_tokens": f"%DYNAMIC_METADATA({METADATA}:prompt_tokens)%",
        "stream_completion_tokens": f"%DYNAMIC_METADATA({METADATA}:completion_tokens)%",
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
        _reply(_late(429), doors.BUDGET_MESSAGE, "budget_exhausted"),
        _reply(_status(429), "this key's limit of requests a second is reached: slow down", "rate_limit_exceeded"),
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


def _late(code: int) -> Json:
    """A refusal by a route, which comes after the body's model is known; the filters before that refuse earlier."""
    known = {"filter": METADATA, "path": [{"key": "model"}], "value": {"present_match": True}}
    is_late = {"metadata_filter": {"matcher": known, "match_if_key_not_found": False}}
    return {"and_filter": {"filters": [_status(code), is_late]}}


def _flags(*flags: str) -> Json:
    return {"response_flag_filter": {"flags": list(flags)}}


def error_body(message: str, code: str) -> Json:
    """OpenAI's error form."""
    kind = "server_error" if code in ("unavailable", "timeout", "nothing_served") else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def extension(name: str, kind: str, **fields: Any) -> Json:
    """One of Envoy's extensions, by name and type."""
    return {"name": name, "typed_config": {"@type": f"{API}.extensions.{kind}", **fields}}


# --- clusters and endpoints --------------------------------------------------------------------------------------


def cluster(model: str, generation: int, eds_path: str, *, has_fallback: bool, by_prefix: bool = False) -> Json:
    """The replicas of one deployment, watched actively (`/health`) and passively (outliers)."""
    name = cluster_name(model, generation)
    return {
        "@type": f"{API}.config.cluster.v3.Cluster",
        "name": name,
        "alt_stat_name": stat_name(model, generation),
        "type": "EDS",
        "connect_timeout": "1s",
        **(prefix_routing.balancing() if by_prefix else {"lb_policy": "LEAST_REQUEST"}),
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
    deployments = [deployment] if fallback is None else [deployment, fallback]
    tiers = [tier for found in deployments for tier in _by_region(found)]
    return {
        "@type": f"{API}.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": cluster_name(model, deployment.generation),
        "policy": {"overprovisioning_factor": 200},
        "endpoints": [
            {
                "priority": priority,
                **({"locality": {"region": region}} if region else {}),
                "lb_endpoints": [_endpoint(replica) for replica in tier if replica.use != "starting"],
            }
            for priority, (region, tier) in enumerate(tiers)
        ],
    }


def _by_region(deployment: Deployment) -> list[tuple[str, list[Replica]]]:
    """The replicas of each region, the preferred region first; the next takes over what it cannot take."""
    found: dict[tuple[int, str], list[Replica]] = {}
    for replica in deployment.replicas:
        found.setdefault((replica.rank, replica.region), []).append(replica)
    return [(region, found[rank, region]) for rank, region in sorted(found)]


def _endpoint(replica: Replica) -> Json:
    """One that is leaving stays known until it has finished, so that its streams can be counted; one that is put aside
    is given nothing new, and finishes what it has begun."""
    found: Json = {"endpoint": {"address": address(replica.host, replica.port)}}
    if replica.use != "serving":
        return {**found, "health_status": "DRAINING"}
    return found if replica.aside is None else {**found, "health_status": "UNHEALTHY"}


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
        "stats_flush_interval": f"{STATS_FLUSH_S}s",
        "admin": {"address": admin},
        "dynamic_resources": {
            "lds_config": watched(f"{xds_path}/lds.json", xds_path),
            "cds_config": watched(f"{xds_path}/cds.json", xds_path),
        },
        "layered_runtime": {"layers": [{"name": "admin", "admin_layer": {}}]},
        "overload_manager": {
            "resource_monitors": [
                extension(
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
