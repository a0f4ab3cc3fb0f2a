"""Replicas: one vLLM server each, kept running by whatever hosts them, trusted only once it has really answered."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import httpx

from pipeline.contracts.base import Contract
from pipeline.errors import ReplicaFailed
from pipeline.fleet.capacity import Memory
from pipeline.fleet.probes import Answer, ask
from pipeline.fleet.state import Replica
from pipeline.fleet.vllm import ReplicaPlan

MAX_STARTS = 3
"""A replica that has been started more often than this before its first right answer is crashing in a loop."""
POLL_S = 0.25

Place = tuple[str, int]
"""Host and port."""


class ReplicaState(Contract):
    """How a replica's process is, in supervisord's words."""

    state: str
    """RUNNING, STARTING, BACKOFF, STOPPING, STOPPED, EXITED or FATAL."""
    pid: int | None


class ReplicaHost(Protocol):
    """Where replicas run: it starts them, starts them again when they die, and ends them."""

    def places(self, count: int, taken: set[str]) -> list[Place]:
        """Where new replicas can listen, `count` places in each region; none of the addresses `taken` (`host:port`)."""

    def put(self, plan: ReplicaPlan) -> None:
        """Keeps the replica running. Harmless to repeat."""

    def remove(self, name: str, *, at_once: bool = False) -> None:
        """Ends it, once it has finished what it is answering unless `at_once`. Harmless to repeat."""

    def memory(self, names: Sequence[str]) -> Memory:
        """What is free where replicas run, and what the largest of `names` takes."""

    def states(self) -> dict[str, ReplicaState]:
        """Of every replica that it knows, by name."""

    def log_of(self, name: str) -> str:
        """Where its log is, for a message."""


@dataclass
class Replicas:
    """Starts, watches and removes replicas."""

    host: ReplicaHost
    poll_s: float = POLL_S
    parallel: int = field(default_factory=lambda: max(1, len(os.sched_getaffinity(0))))
    """How many load their weights at the same time: loading keeps a core busy."""
    waiting: Callable[[], None] = lambda: None
    """Called again and again while replicas are waited for."""

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
                self.host.put(plan)
            deadline = time.monotonic() + batch[0].settings.ready_timeout_s
            for plan in batch:
                self._await_ready(plan, deadline, keep_going)

    def places(self, count: int, taken: set[str]) -> list[Place]:
        """Where new replicas can listen."""
        return self.host.places(count, taken)

    def remove(self, replicas: Iterable[Replica], *, at_once: bool = False) -> None:
        """Ends each, once it has finished what it is answering unless `at_once`. Harmless to repeat."""
        for replica in replicas:
            self.host.remove(replica.id, at_once=at_once)

    def alive(self, replicas: Iterable[Replica]) -> bool:
        """Whether every one of them is kept running."""
        states = self.host.states()
        wanted = [states.get(replica.id) for replica in replicas]
        return bool(wanted) and all(found and found.state in ("RUNNING", "STARTING", "BACKOFF") for found in wanted)

    def _await_ready(self, plan: ReplicaPlan, deadline: float, keep_going: Callable[[], bool]) -> None:
        pids: set[int] = set()
        while keep_going():
            self.waiting()
            answer = ask_replica(plan)
            if answer.good:
                return
            self._refuse_broken(plan, answer, pids)
            if time.monotonic() > deadline:
                raise ReplicaFailed(
                    f"{plan.replica.id} was not ready after {plan.settings.ready_timeout_s:g} s ({answer.failure});"
                    f" see {self.host.log_of(plan.replica.id)}, or raise rollout.ready_timeout_s"
                )
            time.sleep(self.poll_s)

    def _refuse_broken(self, plan: ReplicaPlan, answer: Answer, pids: set[int]) -> None:
        name = plan.replica.id
        if answer.wrong_version:
            raise ReplicaFailed(f"{name} is not what it should be: {answer.failure}; it is not used")
        found = self.host.states().get(name)
        if found is None or found.state in ("FATAL", "EXITED", "STOPPED"):
            what = found.state if found else "removed"
            raise ReplicaFailed(f"{name} does not stay up ({what}): see {self.host.log_of(name)}")
        if found.pid:
            pids.add(found.pid)
        if len(pids) > MAX_STARTS:
            raise ReplicaFailed(
                f"{name} crashed {len(pids) - 1} times before its first answer: see {self.host.log_of(name)}"
            )


def ask_replica(plan: ReplicaPlan) -> Answer:
    """Asks the replica itself, not through the gateway, for a completion as the version that it should be."""
    address = f"http://{plan.replica.address}"
    with httpx.Client(base_url=address, timeout=30.0, trust_env=False, verify=False) as client:
        answer = ask(client, plan.model, "Hello", door=plan.door, max_tokens=1)
    if answer.status != 200:
        return answer
    return answer.expecting(plan.version, str(plan.generation))


def replica_id(model: str, version: str, *, generation: int, index: int) -> str:
    return f"replica-{model}-v{version}-g{generation}-{index}"
