"""Replicas that are processes of this machine, as `replica_guard` looks at them and ends them."""

from dataclasses import dataclass, field

import psutil

from pipeline.stack.supervisor import Supervisor

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
