"""What Envoy says of itself at its own interface: which configuration it runs with, and figures of the replicas."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx

from pipeline.contracts.base import Contract
from pipeline.fleet import envoy_config as config
from pipeline.fleet.views import address_of, healthy_addresses
from pipeline.stack import loopback
from pipeline.stack.layout import Layout

ASK_TIMEOUT_S, TAKEN_TIMEOUT_S = 5.0, 1.0
STATS = {"cds": "cluster_manager.cds", "rds": "http.main.rds.main"}
"""Where Envoy says which version of a file it has taken."""


@dataclass(frozen=True)
class Taken:
    """What Envoy says of one of its files."""

    version: str
    refusals: int
    """Since it began."""


class HostFigures(Contract):
    """What Envoy counted for one replica in one cluster; every attempt counts, also those that a retry mended."""

    healthy: bool
    requests: int
    errors: int
    """5xx answers, resets and failed connections."""
    active: int


class EnvoyAdmin:
    """One home's Envoy, asked."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def ask(
        self,
        path: str,
        parameters: dict[str, str] | None = None,
        *,
        method: str = "GET",
        timeout_s: float = ASK_TIMEOUT_S,
    ) -> Any:
        """Envoy's answer as JSON; None if it is none, or does not come now."""
        url = f"{self.layout.ports().url('gateway_admin')}{path}"
        try:
            answer = loopback.client().request(method, url, params=parameters, timeout=timeout_s)
            return answer.raise_for_status().json()
        except (httpx.HTTPError, ValueError):
            return None

    def taken(self, kind: str) -> Taken | None:
        """What Envoy says of the file; None if it does not answer, or has not read it yet."""
        names = {f"{STATS[kind]}.{name}": name for name in ("version_text", "update_rejected", "update_failure")}
        pattern = f"^{re.escape(STATS[kind])}\\.({'|'.join(names.values())})$"
        answer = self.ask("/stats", {"format": "json", "filter": pattern}, timeout_s=TAKEN_TIMEOUT_S) or {}
        said = {names[stat["name"]]: stat["value"] for stat in answer.get("stats", []) if stat.get("name") in names}
        if not said.get("version_text"):
            return None
        refusals = int(said.get("update_rejected", 0)) + int(said.get("update_failure", 0))
        return Taken(version=str(said["version_text"]), refusals=refusals)

    def healthy(self) -> dict[str, bool] | None:
        """Whether the replica at each address is healthy; None if Envoy does not answer."""
        answer = self.ask("/clusters", {"format": "json"})
        return None if answer is None else healthy_addresses(answer)

    def uptime_s(self) -> float | None:
        """Seconds since this Envoy began, in whole ones; None if it does not answer."""
        answer = self.ask("/server_info")
        return None if answer is None else float(answer["uptime_current_epoch"].removesuffix("s"))

    def hosts(self, model: str, generation: int) -> dict[str, HostFigures]:
        """What Envoy counted for each address of one cluster, the fallback's too; empty if it does not answer."""
        answer = self.ask("/clusters", {"format": "json"}) or {}
        name = config.cluster_name(model, generation)
        hosts = [
            host
            for cluster in answer.get("cluster_statuses", [])
            if cluster["name"] == name
            for host in cluster.get("host_statuses", [])
        ]
        return {address_of(host): _figures(host) for host in hosts}

    def durations_ms(self, model: str, generation: int, *, mirrored: bool) -> Counter[float] | None:
        """How often the answers of one cluster took how long, in milliseconds, since Envoy began; None if it does not
        answer.

        Envoy rounds to two digits, and brings its figures up to date every `STATS_FLUSH_S`.

        Args:
            mirrored: those to copies of requests, which no log holds; otherwise those to clients and probes.
        """
        origin = "internal" if mirrored else "external"
        place = re.escape(config.stat_name(model, generation))
        pattern = rf"^cluster\.{place}\.{origin}\.upstream_rq_time$"
        parameters = {"format": "json", "filter": pattern, "histogram_buckets": "detailed"}
        answer = self.ask("/stats", parameters)
        if answer is None:
            return None
        found: Counter[float] = Counter()
        for stat in answer.get("stats", []):
            for histogram in stat.get("histograms", {}).get("details", []):
                for bucket in histogram["totals"]:
                    found[bucket["lower_bound"] + bucket["width"] / 2] += bucket["count"]
        return found

    def active_addresses(self, model: str) -> set[str] | None:
        """Where something of a model is being answered now, whichever of its clusters it came by; None if Envoy does
        not answer."""
        answer = self.ask("/clusters", {"format": "json"})
        if answer is None:
            return None
        return {
            address_of(host)
            for cluster in answer.get("cluster_statuses", [])
            if cluster["name"].startswith(config.cluster_prefix(model))
            for host in cluster.get("host_statuses", [])
            if _figures(host).active
        }


def _figures(host: dict[str, Any]) -> HostFigures:
    stats = {stat["name"]: int(stat.get("value", 0)) for stat in host.get("stats", [])}
    errors = stats.get("rq_error", 0)
    return HostFigures(
        healthy=host["health_status"] == {"eds_health_status": "HEALTHY"},
        requests=max(stats.get("rq_total", 0), stats.get("rq_success", 0) + errors),
        errors=errors,
        active=stats.get("rq_active", 0),
    )
