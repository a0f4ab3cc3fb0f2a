"""The processes of replicas, as `replica_guard` looks at them and ends them: this machine's own, or in containers."""

from dataclasses import dataclass, field
from typing import Protocol

import psutil

from pipeline.agent import AgentClient
from pipeline.contracts.base import Contract
from pipeline.errors import TransientError
from pipeline.settings import Settings
from pipeline.stack.layout import Layout
from pipeline.stack.supervisor import Supervisor


class Processes(Protocol):
    """Whoever keeps them starts anew what ends without having been taken away."""

    def works(self, name: str) -> bool:
        """Whether the process that takes the replica's requests has used a processor since it was last looked at, or
        waits for one."""

    def end(self, name: str, *, at_once: bool) -> None:
        """Ends it, at once or after what it has begun."""


class Activity(Contract):
    """What the process in a replica's container does."""

    waits: bool
    """For a processor, or for a disk."""
    used_s: float
    """Its processor time."""


WAITING = (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)
"""For a processor that is busy with others, or for a disk, the swapped memory's too."""


@dataclass
class LocalProcesses:
    """The home's supervisor keeps them, and starts anew what ends without having been asked to."""

    supervisor: Supervisor
    used: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Each replica's process, and its processor time in seconds, when it was looked at last."""

    def works(self, name: str) -> bool:
        """Whether the process that takes its requests has used a processor since it was last looked at, or waits for
        one. One that is looked at for the first time, or that is not there, does not."""
        state = self.supervisor.state(name)
        if state is None or state.pid is None:
            return False
        try:
            process = psutil.Process(state.pid)
            status, times = process.status(), process.cpu_times()
        except psutil.NoSuchProcess:
            return False
        pid, used_s = self.used.get(name, (0, 0.0))
        self.used[name] = (state.pid, times.user + times.system)
        return status in WAITING or (pid == state.pid and times.user + times.system > used_s)

    def end(self, name: str, *, at_once: bool) -> None:
        """Ends it, at once or after what it has begun."""
        self.supervisor.signal(name, "SIGKILL" if at_once else "SIGTERM")


@dataclass
class ContainerProcesses:
    """The engine keeps them; the agent asks it."""

    agent: AgentClient
    used_s: dict[str, float] = field(default_factory=dict)
    """Each replica's processor time when it was looked at last."""

    def works(self, name: str) -> bool:
        """As for processes. While the agent is away nobody can say that a replica does nothing."""
        try:
            found = Activity.model_validate(self.agent.call("GET", f"/replicas/{name}/activity"))
        except TransientError:
            return True
        before_s = self.used_s.get(name, found.used_s)
        self.used_s[name] = found.used_s
        return found.waits or found.used_s > before_s

    def end(self, name: str, *, at_once: bool) -> None:
        self.agent.call("POST", f"/replicas/{name}/restart", at_once=at_once)


def processes_of(settings: Settings, layout: Layout) -> Processes:
    """In containers where there is an agent to start them, else of this machine."""
    if settings.agent_path is not None:
        return ContainerProcesses(AgentClient(settings.agent_path))
    return LocalProcesses(Supervisor(layout.home_path))
