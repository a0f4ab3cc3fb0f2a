"""Replicas as supervised processes of this machine. Their logs are `home/logs/<replica>.log`."""

import contextlib
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from pipeline.fleet import vllm
from pipeline.fleet.capacity import Memory
from pipeline.fleet.replicas import Place, ReplicaState
from pipeline.fleet.state import Replica
from pipeline.fleet.vllm import ReplicaPlan
from pipeline.stack import processes
from pipeline.stack.layout import LOOPBACK, Layout
from pipeline.stack.supervisor import Program, Supervisor

PORTS = range(20_000, 30_000)
"""Below the range from which the kernel gives ports to outgoing connections, so that none is lost while a replica
loads its weights."""


class Engine(Protocol):
    """What a replica runs."""

    def program(self, plan: ReplicaPlan) -> Program: ...


@dataclass(frozen=True)
class VllmEngine:
    """`vllm serve` in the serve environment."""

    layout: Layout
    python_path: Path

    def program(self, plan: ReplicaPlan) -> Program:
        return Program(
            name=plan.replica.id,
            command=vllm.command(plan, self.python_path),
            environment=vllm.variables(plan, self.layout.cache_path / "vllm"),
            stop_wait_s=vllm.DRAIN_S + 15,
            start_s=5,
            start_retries=2,
            kill_remains=True,
            # While it loads, vLLM ignores SIGTERM; and there is nothing to drain yet.
            ready_url=f"http://{plan.replica.address}/health",
        )


@dataclass(frozen=True)
class LocalReplicas:
    """Implements `replicas.ReplicaHost` with the home's supervisord."""

    supervisor: Supervisor
    engine: Engine
    addresses: tuple[str, ...] = (LOOPBACK,)
    """One for each region."""

    def places(self, count: int, taken: set[str]) -> list[Place]:
        """At each address ports that nobody listens on now and that no other replica was given."""
        return [place for address in self.addresses for place in _places_at(address, count, taken)]

    def put(self, plan: ReplicaPlan) -> None:
        self.supervisor.put(self.engine.program(plan))

    def remove(self, name: str, *, at_once: bool = False) -> None:
        self.supervisor.remove(name, at_once=at_once)

    def memory(self, names: Sequence[str]) -> Memory:
        pids = {state.name: state.pid for state in self.supervisor.states()}
        taken = [_held_bytes(pid) for name in names if (pid := pids.get(name))]
        machine = psutil.virtual_memory()
        return Memory(total_bytes=machine.total, free_bytes=machine.available, replica_bytes=max(taken, default=0))

    def states(self) -> dict[str, ReplicaState]:
        return {found.name: ReplicaState(state=found.state, pid=found.pid) for found in self.supervisor.states()}

    def log_of(self, name: str) -> str:
        return str(self.supervisor.layout.log_path(name))


def _held_bytes(pid: int) -> int:
    """Of a process and its group: their own pages, and their share of those that they share."""
    held = 0
    for process in processes.group_of(pid):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            held += process.memory_full_info().pss
    return held


def _places_at(address: str, count: int, taken: set[str]) -> list[Place]:
    found: list[Place] = []
    for port in random.sample(PORTS, len(PORTS)):
        if len(found) == count:
            break
        if Replica(id="", host=address, port=port).address not in taken and _is_free(address, port):
            found.append((address, port))
    return found


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
