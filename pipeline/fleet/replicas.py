"""Replicas: one vLLM server each, kept running by the supervisor, trusted only once it has really answered.

Reads a verified bundle folder; the engine writes its compile cache to `home/cache/vllm` and its log to
`home/logs/<replica>.log`.
"""

import os
import random
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx

from pipeline.contracts import recipe as recipes
from pipeline.errors import ReplicaFailed
from pipeline.fleet.probes import Answer, ask
from pipeline.fleet.state import Replica
from pipeline.settings import ROOT
from pipeline.stack.layout import Layout
from pipeline.stack.supervisor import Program, Supervisor

PORTS = range(20_000, 30_000)
"""Below the range from which the kernel gives ports to outgoing connections, so that none is lost while a replica
loads its weights."""
MAX_STARTS = 3
"""A replica that has been started more often than this before its first right answer is crashing in a loop."""
POLL_S = 0.25
DRAIN_S = 60


@dataclass(frozen=True, kw_only=True)
class ReplicaPlan:
    """What one replica has to serve, and as what it answers."""

    replica: Replica
    model: str
    version: str
    generation: int
    bundle_path: Path
    settings: recipes.Rollout
    core: int
    """The processor core that its arithmetic is bound to."""


class Engine(Protocol):
    """What a replica runs."""

    def program(self, plan: ReplicaPlan) -> Program: ...


@dataclass(frozen=True)
class VllmEngine:
    """`vllm serve` in the serve environment."""

    layout: Layout
    python_path: Path

    def program(self, plan: ReplicaPlan) -> Program:
        cache = self.layout.cache_path / "vllm"
        command = (
            *(str(self.python_path), "-m", "vllm.entrypoints.cli.main", "serve", str(plan.bundle_path)),
            *("--served-model-name", plan.model),
            *("--host", "127.0.0.1", "--port", str(plan.replica.port)),
            *("--max-model-len", str(plan.settings.max_model_len)),
            *("--kv-cache-memory-bytes", str(plan.settings.kv_cache_mib << 20)),
            *("--shutdown-timeout", str(DRAIN_S)),
            *("--middleware", "pipeline.fleet.replica_middleware.Version"),
            *("--worker-extension-cls", "pipeline.fleet.replica_worker.Amx"),
            *("--uvicorn-log-level", "warning"),
            "--enforce-eager",
        )
        return Program(
            name=plan.replica.id,
            command=command,
            environment={
                "PYTHONPATH": str(ROOT),
                "SLIPWAY_REPLICA_MODEL": plan.model,
                "SLIPWAY_REPLICA_VERSION": plan.version,
                "SLIPWAY_REPLICA_GENERATION": str(plan.generation),
                # `--enforce-eager` leaves some small compiled functions: 20 s at a replica's first request.
                "TORCHDYNAMO_DISABLE": "1",
                # Replicas share their cores with jobs: threads that wait must sleep, not spin.
                "OMP_WAIT_POLICY": "PASSIVE",
                "VLLM_CPU_OMP_THREADS_BIND": str(plan.core),
                "VLLM_CACHE_ROOT": str(cache),
                "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
                "VLLM_HOST_IP": "127.0.0.1",
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
            },
            stop_wait_s=DRAIN_S + 15,
            start_s=5,
            start_retries=2,
            kill_remains=True,
        )


@dataclass
class Replicas:
    """Starts, watches and removes replicas."""

    supervisor: Supervisor
    engine: Engine
    poll_s: float = POLL_S
    parallel: int = field(default_factory=lambda: max(1, len(os.sched_getaffinity(0))))
    """How many load their weights at the same time: loading keeps a core busy."""

    def start(self, plans: Iterable[ReplicaPlan], keep_going: Callable[[], bool]) -> None:
        """Starts every replica and returns when all have answered. Harmless to repeat.

        Args:
            keep_going: asked while waiting; False ends the wait early, without an error.

        Raises:
            ReplicaFailed: one did not become ready in time, crashes, or answers as another version.
        """
        plans = list(plans)
        for first in range(0, len(plans), self.parallel):
            batch = plans[first : first + self.parallel]
            for plan in batch:
                self.supervisor.put(self.engine.program(plan))
            deadline = time.monotonic() + batch[0].settings.ready_timeout_s
            for plan in batch:
                self._await_ready(plan, deadline, keep_going)

    def remove(self, replicas: Iterable[Replica]) -> None:
        """Lets each finish what it is answering, then ends it. Harmless to repeat."""
        for replica in replicas:
            self.supervisor.remove(replica.id)

    def alive(self, replicas: Iterable[Replica]) -> bool:
        """Whether the supervisor keeps every one of them running."""
        states = {state.name: state.state for state in self.supervisor.states()}
        return all(states.get(replica.id) in ("RUNNING", "STARTING", "BACKOFF") for replica in replicas)

    def _await_ready(self, plan: ReplicaPlan, deadline: float, keep_going: Callable[[], bool]) -> None:
        pids: set[int] = set()
        answer = Answer(failure="it was not asked yet")
        while keep_going():
            answer = ask_replica(plan)
            if answer.good:
                return
            self._refuse_broken(plan, answer, pids)
            if time.monotonic() > deadline:
                raise ReplicaFailed(
                    f"{plan.replica.id} was not ready after {plan.settings.ready_timeout_s:g} s ({answer.failure});"
                    f" see {self._log_path(plan)}, or raise rollout.ready_timeout_s"
                )
            time.sleep(self.poll_s)

    def _refuse_broken(self, plan: ReplicaPlan, answer: Answer, pids: set[int]) -> None:
        if answer.wrong_version:
            raise ReplicaFailed(f"{plan.replica.id} is not what it should be: {answer.failure}; it is not used")
        state = self.supervisor.state(plan.replica.id)
        if state is None or state.state in ("FATAL", "EXITED", "STOPPED"):
            found = state.state if state else "removed"
            raise ReplicaFailed(f"{plan.replica.id} does not stay up ({found}): see {self._log_path(plan)}")
        if state.pid:
            pids.add(state.pid)
        if len(pids) > MAX_STARTS:
            raise ReplicaFailed(
                f"{plan.replica.id} crashed {len(pids) - 1} times before its first answer: see {self._log_path(plan)}"
            )

    def _log_path(self, plan: ReplicaPlan) -> Path:
        return self.supervisor.layout.log_path(plan.replica.id)


def ask_replica(plan: ReplicaPlan) -> Answer:
    """Asks the replica itself, not through the gateway, for a completion as the version that it should be."""
    with httpx.Client(base_url=f"http://127.0.0.1:{plan.replica.port}", timeout=30.0, trust_env=False) as client:
        answer = ask(client, plan.model, "Hello", max_tokens=1)
    if answer.status != 200:
        return answer
    return answer.expecting(plan.version, str(plan.generation))


def replica_id(model: str, version: str, *, generation: int, index: int) -> str:
    return f"replica-{model}-v{version}-g{generation}-{index}"


def free_ports(count: int, taken: set[int]) -> list[int]:
    """Loopback ports that nobody listens on now and that no other replica was given."""
    ports: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        if len(ports) == count:
            break
        if port not in taken and _is_free(port):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
