"""Envoy's filters that stand between a client and the routes. Pure: nothing here reads or writes but the Lua file.

A request loses every header that only the gateway may write, its key becomes a digest (doors.lua), the digest a
client's name in `x-client-id` (api_key_auth), and the client's bucket of requests gives one away (local_ratelimit).
https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_filters/http_filters
"""

from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.fleet.doors.clients import Client

Json = dict[str, Any]

API = "type.googleapis.com/envoy"
FILTERS = f"{API}.extensions.filters.http"
CLIENT_HEADER = "x-client-id"
DIGEST_HEADER = "x-slipway-key"
BUDGET_HEADER = "x-slipway-budget"
"""Of refusals: doors.lua adds `retry-after` to them."""
BUDGET_MESSAGE = "this key's tokens for today are used up; they begin anew at midnight UTC"
KEY_FILTER, LIMIT_FILTER = "envoy.filters.http.api_key_auth", "envoy.filters.http.local_ratelimit"
SCRIPT = Path(__file__).with_name("doors.lua")
FORGED = (
    CLIENT_HEADER,
    DIGEST_HEADER,
    "x-slipway-model",
    "x-slipway-prefix",
    "x-slipway-version",
    "x-slipway-generation",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-client-cert",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-original-url",
    "x-rewrite-url",
    "x-http-method-override",
    "x-real-ip",
)
"""Headers of requests that clients may not write: what they send there is gone before anything looks at it."""
FORGED_PREFIX = "x-envoy-"
UNLIMITED = 4_000_000_000


def early_mutations() -> list[Json]:
    """Takes away what a client may not say, before Envoy's own logic reads it."""
    mutations: list[Json] = [{"remove": name} for name in FORGED]
    mutations.append({"remove_on_match": {"key_matcher": {"prefix": FORGED_PREFIX}}})
    kind = f"{API}.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation"
    return [{"name": "forged", "typed_config": {"@type": kind, "mutations": mutations}}]


def key_filters() -> list[Json]:
    """From the key to the client's name, and its limit of requests. What they hold to is in the route table."""
    return [
        {
            "name": "envoy.filters.http.lua",
            "typed_config": {
                "@type": f"{FILTERS}.lua.v3.Lua",
                "default_source_code": {"inline_string": SCRIPT.read_text()},
            },
        },
        {"name": KEY_FILTER, "typed_config": {"@type": f"{FILTERS}.api_key_auth.v3.ApiKeyAuth"}},
        {
            "name": LIMIT_FILTER,
            "typed_config": {"@type": f"{FILTERS}.local_ratelimit.v3.LocalRateLimit", "stat_prefix": "clients"},
        },
    ]


def per_host(clients: tuple[Client, ...]) -> Json:
    """The filters' settings that change with the clients: they are part of the route table."""
    return {KEY_FILTER: credentials(clients), LIMIT_FILTER: limits(clients)}


def credentials(clients: tuple[Client, ...]) -> Json:
    """A digest becomes the client's name, and goes no further."""
    return {
        "@type": f"{FILTERS}.api_key_auth.v3.ApiKeyAuthPerRoute",
        "credentials": [{"key": digest, "client": client.name} for client in clients for digest in client.digests],
        "key_sources": [{"header": DIGEST_HEADER}],
        "forwarding": {"header": CLIENT_HEADER, "hide_credentials": True},
    }


def limits(clients: tuple[Client, ...]) -> Json:
    """A bucket of requests for each client that has a limit; it is full again whenever the route table changes."""
    all_of_them = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}, "runtime_key": "slipway.limits"}
    return {
        "@type": f"{FILTERS}.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "clients",
        "token_bucket": {"max_tokens": UNLIMITED, "tokens_per_fill": UNLIMITED, "fill_interval": "1s"},
        "filter_enabled": all_of_them,
        "filter_enforced": all_of_them,
        "always_consume_default_token_bucket": False,
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
        "rate_limits": [{"actions": [{"request_headers": {"header_name": CLIENT_HEADER, "descriptor_key": "client"}}]}],
        "descriptors": [
            {"entries": [{"key": "client", "value": client.name}], "token_bucket": bucket(client.rate, client.burst)}
            for client in clients
            if client.rate is not None
        ],
    }


def bucket(rate: float, burst: int | None) -> Json:
    """Envoy is told whole tokens and seconds, 2.5 a second as 5 each 2, and lets them in as time goes by."""
    share = Fraction(rate).limit_denominator(1000)
    return {
        "max_tokens": burst or max(1, round(rate)),
        "tokens_per_fill": share.numerator,
        "fill_interval": f"{share.denominator}s",
    }
