"""Replicas as containers of the image `serve`, each with an address of its own in the fleet's network.

The engine starts a replica again when it dies; its state is what the engine says. What should run is in
home/fleet/replicas/NAME.json, so that `restore` brings back containers that are gone. A replica sees the cache of
bundles (read-only), its own folder in memory, and nothing else of the home.
"""

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from docker.errors import APIError, NotFound
from docker.models.containers import Container
from docker.types import LogConfig

from pipeline.containers import compose_labels, connect, engine_errors, gone_is_fine
from pipeline.contracts.base import canonical_json, sha256_hex
from pipeline.errors import SlipwayError, SpecError, TransientError
from pipeline.fleet import vllm
from pipeline.fleet.capacity import Memory
from pipeline.fleet.replica_processes import Activity
from pipeline.fleet.replicas import Place, ReplicaState
from pipeline.fleet.vllm import ReplicaPlan
from pipeline.images import image_name
from pipeline.settings import Settings
from pipeline.stack.layout import Layout
from slipway_airflow.agent.vocabulary import REPLICA_PORT, check_plan
from slipway_airflow.backends.container_plan import owner, volume_mount
from slipway_airflow.backends.process_runner import write_atomically

LABEL = "slipway.replica"
PLAN_LABEL = "slipway.plan"
STOP_S = vllm.DRAIN_S + 15
ASK_HEALTH = "import sys, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(sys.argv[1], timeout=5)"
ASK_WHAT_IT_DOES = """
import os
child = open("/proc/1/task/1/children").read().split()[0]
found = open(f"/proc/{child}/stat").read().rpartition(")")[2].split()
print(found[0], (int(found[11]) + int(found[12])) / os.sysconf("SC_CLK_TCK"))
"""
"""Of the first process's first child, since the first one only looks after it."""
WAITING = "RD"
"""States of a process that waits for a processor or a disk, or has one."""
ASK_TO_END = "import os, signal; os.kill(1, signal.SIGTERM)"
PYTHON = Path("/opt/venv/bin/python")
LOGS = {"max-size": "10m", "max-file": "4"}
"""As long as a replica's log is as a process."""
SCRATCH = Path("/tmp")
STATES = {
    "created": "STARTING",
    "running": "RUNNING",
    "paused": "RUNNING",
    "restarting": "BACKOFF",
    "removing": "STOPPING",
    "exited": "EXITED",
    "dead": "FATAL",
}


class ReplicaContainers:
    """Starts and ends replicas of one stack."""

    def __init__(self, settings: Settings) -> None:
        if not (settings.docker_fleet_network and settings.docker_volume):
            raise SpecError(
                "replicas as containers need SLIPWAY_DOCKER_FLEET_NETWORK (their network) and SLIPWAY_DOCKER_VOLUME"
                " (the volume of SLIPWAY_HOME)"
            )
        self.settings = settings
        self.network: str = settings.docker_fleet_network
        self.plans_path = Layout(settings.home_path).fleet_path / "replicas"
        self.engine = connect()

    def places(self, count: int, taken: set[str]) -> list[Place]:
        """Addresses of the fleet's network that Docker gives to nobody by itself and no replica has."""
        with engine_errors(f"look at the network {self.network}"):
            config = self.engine.networks.get(self.network).attrs["IPAM"]["Config"][0]
            used = {self._address(container) for container in self._containers()}
        if "IPRange" not in config:
            raise SpecError(f"the network {self.network} has no ip_range, so Docker may give away a replica's address")
        reserved = ipaddress.ip_network(config["IPRange"])
        found = [
            (str(address), REPLICA_PORT)
            for address in ipaddress.ip_network(config["Subnet"]).hosts()
            if address not in reserved and str(address) not in {config.get("Gateway"), *used}
        ]
        free = [place for place in found if f"{place[0]}:{place[1]}" not in taken]
        if len(free) < count:
            raise TransientError(
                f"the network {self.network} ({config['Subnet']}) has {len(free)} free addresses for replicas, {count}"
                " are needed; retire versions, or give the network a larger subnet"
            )
        return free[:count]

    def put(self, plan: ReplicaPlan) -> None:
        """Keeps the replica running: starts it, or starts it anew if its plan is another."""
        self.plans_path.mkdir(parents=True, exist_ok=True)
        write_atomically(self._plan_path(plan.replica.id), plan.model_dump_json())
        self._run(plan)

    def restore(self) -> list[str]:
        """Starts what should run and does not, as after `docker compose down` and `up`; what could not be, and why.

        What runs goes on, also where a release before this one wrote its plan in other words.
        """
        failures = []
        for path in sorted(self.plans_path.glob("*.json")):
            try:
                plan = ReplicaPlan.model_validate_json(path.read_bytes())
                check_plan(path.stem, plan, self.settings)
                self._run(plan, keep_running=True)
            except (SlipwayError, ValueError) as error:
                failures.append(f"{path.stem} is not there again: {error}")
        return failures

    def _run(self, plan: ReplicaPlan, *, keep_running: bool = False) -> None:
        wanted = sha256_hex(canonical_json(plan.model_dump(mode="json")))
        with engine_errors(f"start replica {plan.replica.id}"):
            known = self._find(plan.replica.id)
            if keep_running and known is not None and known.status in ("running", "restarting"):
                return
            if known is not None and known.labels.get(PLAN_LABEL) != wanted:
                known.remove(force=True)
                known = None
            if known is None:
                known = self._create(plan, wanted)
            if known.status not in ("running", "restarting"):
                known.start()

    def remove(self, name: str, *, at_once: bool = False) -> None:
        """Two rollouts may retire the same replica at once."""
        self._plan_path(name).unlink(missing_ok=True)
        with engine_errors(f"look at replica {name}"):
            container = self._find(name)
        if container is None:
            return
        if not at_once and self._answers(container):
            with gone_is_fine(), engine_errors(f"end replica {name}"):
                container.stop(timeout=STOP_S)
        with gone_is_fine(), engine_errors(f"remove replica {name}"):
            container.remove(force=True)

    def activity(self, name: str) -> Activity:
        """What its program does; nothing, if the engine lets nobody ask: it is paused, or gone."""
        nothing = Activity(waits=False, used_s=0)
        with engine_errors(f"look at replica {name}"):
            container = self._find(name)
        if container is None or container.status != "running":
            return nothing
        with gone_is_fine(), engine_errors(f"ask {name} what it does"):
            said = container.exec_run(["python", "-I", "-S", "-c", ASK_WHAT_IT_DOES], stderr=False)
            if said.exit_code == 0:
                state, used_s = said.output.decode().split()
                return Activity(waits=state in WAITING, used_s=float(used_s))
        return nothing

    def restart(self, name: str, *, at_once: bool) -> None:
        """From within, where it may finish: the engine leaves down what it was told to signal."""
        with engine_errors(f"look at replica {name}"):
            container = self._find(name)
        if container is None:
            return
        with gone_is_fine(), engine_errors(f"restart replica {name}"):
            if at_once or container.status != "running":
                container.restart(timeout=0)
            else:
                container.exec_run(["python", "-I", "-S", "-c", ASK_TO_END])

    def memory(self, names: Sequence[str]) -> Memory:
        """The engine's figures, without files that the kernel keeps in memory as long as there is room."""
        with engine_errors("measure the replicas' memory"):
            running = [found for found in self._containers() if found.labels[LABEL] in names]
            taken = [_held_bytes(found.stats(stream=False, one_shot=True)) for found in running]
        machine = psutil.virtual_memory()
        return Memory(total_bytes=machine.total, free_bytes=machine.available, replica_bytes=max(taken, default=0))

    def states(self) -> dict[str, ReplicaState]:
        with engine_errors("list replicas"):
            return {container.labels[LABEL]: _state(container) for container in self._containers()}

    def _answers(self, container: Container) -> bool:
        """Whether it has something to finish. While it loads, vLLM ignores SIGTERM; such a one is killed at once.

        Asked in the container: nobody else here is in its network.
        """
        if container.status != "running":
            return False
        url = f"http://{self._address(container)}:{REPLICA_PORT}/health"
        with engine_errors(f"ask {container.name} for its health"):
            try:
                return bool(container.exec_run(["python", "-I", "-S", "-c", ASK_HEALTH, url]).exit_code == 0)
            except APIError:  # it has ended meanwhile
                return False

    def _create(self, plan: ReplicaPlan, digest: str) -> Container:
        endpoint = self.engine.api.create_endpoint_config(ipv4_address=plan.replica.host)
        return self.engine.containers.create(
            image_name("serve", self.settings),
            list(vllm.command(plan, PYTHON)),
            name=self._container_name(plan.replica.id),
            environment={**vllm.variables(plan, SCRATCH / "vllm"), "HOME": str(SCRATCH)},
            labels={
                **compose_labels(self.settings.docker_project, "replica"),
                LABEL: plan.replica.id,
                PLAN_LABEL: digest,
            },
            network=self.network,
            networking_config={self.network: endpoint},
            mounts=[volume_mount(self.settings, self.settings.cache_path, read_only=True)],
            read_only=True,
            tmpfs={str(SCRATCH): "size=2g,mode=1777"},
            shm_size="256m",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            restart_policy={"Name": "unless-stopped"},
            log_config=LogConfig(type=LogConfig.types.JSON, config=LOGS),
            user=owner(self.settings.home_path),
            init=True,
        )

    def _plan_path(self, name: str) -> Path:
        return self.plans_path / f"{name}.json"

    def _container_name(self, name: str) -> str:
        return f"{self.settings.docker_project}-{name}"

    def _containers(self) -> list[Container]:
        filters: Any = {"label": [LABEL, f"com.docker.compose.project={self.settings.docker_project}"]}
        found: list[Container] = self.engine.containers.list(all=True, filters=filters, ignore_removed=True)
        return found

    def _find(self, name: str) -> Container | None:
        try:
            found = self.engine.containers.get(self._container_name(name))
        except NotFound:
            return None
        if found.labels.get(LABEL) != name:
            raise SpecError(f"the container {found.name} is no replica of this stack's; give the stack another name")
        return found

    def _address(self, container: Container) -> str:
        config = container.attrs["NetworkSettings"]["Networks"].get(self.network, {})
        return str((config.get("IPAMConfig") or {}).get("IPv4Address") or config.get("IPAddress", ""))


def _held_bytes(figures: dict[str, Any]) -> int:
    """Of a container, from what the engine's `stats` says; 0 if it has ended."""
    memory = figures.get("memory_stats", {})
    return int(memory.get("usage", 0)) - int(memory.get("stats", {}).get("inactive_file", 0))


def _state(container: Container) -> ReplicaState:
    pid = container.attrs["State"].get("Pid") or None
    return ReplicaState(state=STATES.get(container.status, "FATAL"), pid=pid)
