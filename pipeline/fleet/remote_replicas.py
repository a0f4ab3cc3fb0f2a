"""Replicas as containers, which the agent starts: the same fleet, where this process may start nothing itself."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.agent import AgentClient
from pipeline.fleet.capacity import Memory
from pipeline.fleet.replicas import Place, ReplicaState
from pipeline.fleet.vllm import ReplicaPlan


@dataclass(frozen=True)
class RemoteReplicas:
    """Implements `replicas.ReplicaHost`."""

    agent: AgentClient

    def places(self, count: int, taken: set[str]) -> list[Place]:
        found = self.agent.call("POST", "/replicas/places", {"count": count, "taken": sorted(taken)})
        return [(host, port) for host, port in found]

    def put(self, plan: ReplicaPlan) -> None:
        self.agent.call("PUT", f"/replicas/{plan.replica.id}", plan.model_dump(mode="json"))

    def remove(self, name: str, *, at_once: bool = False) -> None:
        self.agent.call("DELETE", f"/replicas/{name}", at_once=at_once)

    def memory(self, names: Sequence[str]) -> Memory:
        return Memory.model_validate(self.agent.call("POST", "/replicas/memory", list(names)))

    def states(self) -> dict[str, ReplicaState]:
        return {name: ReplicaState.model_validate(state) for name, state in self.agent.call("GET", "/replicas").items()}

    def log_of(self, name: str) -> str:
        return f"`docker logs` of the container {name}"
