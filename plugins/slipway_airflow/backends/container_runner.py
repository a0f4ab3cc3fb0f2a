"""Watches over one node of a job, as the first process of its container. Standard library only, run as a folder:

    python -I -S -B JOB_FOLDER/runner JOB_FOLDER RANK

where runner/ holds this file as __main__.py beside process_runner.py. So any image with a Python can run a job, and
the runner is always the one that the backend was written with. It reads JOB_FOLDER/request.json, appends to
JOB_FOLDER/log, and reads JOB_FOLDER/secrets.RANK.json, which it removes at once: the program finds the secrets in its
environment, and nobody finds them anywhere else. Its own exit code is the node's.
"""

import contextlib
import ctypes
import json
import os
import sys
import time
from pathlib import Path

from process_runner import EXIT_CANCELLED, EXIT_TRANSIENT, VERDICTS, Runner, node_variables

EXIT_OVER_LIMIT = 64
"""A limit is a setting of the recipe: the same job would only run into it again."""
RENDEZVOUS_PORT = 29400
PR_SET_CHILD_SUBREAPER = 36
SAMPLE_S = 0.5
AT_LIMIT = 0.99
"""What share of the limit counts as all of it, where the kernel does not count hits of the limit."""


class MemoryWatch:
    """What the kernel says about the container's memory, and how much its programs have asked for."""

    def __init__(self, root: Path = Path("/sys/fs/cgroup")) -> None:
        unified = (root / "memory.events").exists()
        folder = root if unified else root / "memory"
        self.unified = unified
        self.events_path = folder / ("memory.events" if unified else "memory.oom_control")
        self.peak_path = folder / ("memory.peak" if unified else "memory.max_usage_in_bytes")
        self.asked_bytes = 0
        self._sampled_at = 0.0
        self._before = {name: self._count(name) for name in ("oom", "oom_kill")}

    def kills(self) -> int:
        """How many processes the kernel has killed for want of memory since the start."""
        return self._count("oom_kill") - self._before["oom_kill"]

    def was_at(self, limit_bytes: int) -> bool:
        """Whether the container's own limit was reached, rather than the end of the machine's memory."""
        if self.unified:
            return self._count("oom") > self._before["oom"]
        return self.peak_bytes() >= AT_LIMIT * limit_bytes

    def _count(self, event: str) -> int:
        with contextlib.suppress(OSError):
            for line in self.events_path.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == event:
                    return int(value)
        return 0

    def peak_bytes(self) -> int:
        """The most that was in use."""
        try:
            return int(self.peak_path.read_text())
        except OSError:
            return 0

    def sample(self) -> None:
        """Looks, now and then, at how much private memory the programs have asked for, used or not."""
        if time.monotonic() - self._sampled_at < SAMPLE_S:
            return
        self._sampled_at = time.monotonic()
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]
        self.asked_bytes = max(self.asked_bytes, sum(map(_asked_bytes, pids)))


class ContainerRunner(Runner):
    """A runner of one node."""

    def __init__(self, folder: Path, rank: int) -> None:
        super().__init__(folder)
        self.rank = rank
        self.memory = MemoryWatch()
        self.secrets = take_secrets(folder / f"secrets.{rank}.json")
        # Orphans of the program become ours, also where we are not the first process of a machine of their own.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)

    def _variables(self) -> list[dict[str, str]]:
        rendezvous = f"{self.request['first_node']}:{RENDEZVOUS_PORT}"
        return [{**self.secrets, **node_variables(self.request, self.rank, rendezvous)}]

    def _collect(self) -> None:
        super()._collect()
        self._reap_orphans()
        self.memory.sample()

    def _reap_orphans(self) -> None:
        own = {node.process.pid for node in self.nodes}
        with contextlib.suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if found.si_pid in own:
                    return  # the next `_collect` has its exit code
                os.waitpid(found.si_pid, os.WNOHANG)

    def _judge(self, rank: int, code: int) -> int:
        kills = self.memory.kills()
        if not kills or code in VERDICTS:
            return super()._judge(rank, code)
        limit, field = self.request["memory_bytes"], self.request["memory_field"]
        if not limit or not self.memory.was_at(limit):
            self.say(
                f"error {EXIT_TRANSIENT} JobLost: the machine ran out of memory: the kernel killed {kills} processes"
                f" of node {rank}, which used {_gb(self.memory.peak_bytes())}"
                f"{f' of its {_gb(limit)}' if limit else ''}; run less beside it, or lower `{field}`"
            )
            return EXIT_TRANSIENT
        self.say(
            f"error {EXIT_OVER_LIMIT} MemoryLimit: node {rank} needed more memory than its limit of {_gb(limit)}: it"
            f" used {_gb(self.memory.peak_bytes())} and had asked for {_gb(self.memory.asked_bytes)} when the kernel"
            f" killed {kills} of its processes; raise `{field}` in the recipe, or make the work smaller"
        )
        return EXIT_OVER_LIMIT

    def _termination(self) -> int:
        if (self.folder / "stopping").exists():  # another node has failed, and the backend ends this one
            return EXIT_CANCELLED
        return super()._termination()

    def _write(self, data: bytes) -> None:
        super()._write(data)
        with contextlib.suppress(OSError):
            os.write(sys.stdout.fileno(), data)


def take_secrets(path: Path) -> dict[str, str]:
    """Reads the file and removes it."""
    try:
        secrets: dict[str, str] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    path.unlink()
    return secrets


def _asked_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) << 10
    return 0


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"


def main(folder: Path, rank: int) -> int:
    return ContainerRunner(folder, rank).run()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
