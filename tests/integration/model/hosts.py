"""Two hosts on one machine: network namespaces with an address, a cable and a disk each, and a switch between them.

The switch is in a namespace of its own, where the machine's firewall does not reach (a Docker engine forbids bridges to
forward), and its address is a third host, where the nodes meet. `HostsJob` starts what dies again, as a backend would.
"""

import contextlib
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from training_jobs import DEADLINE_S, ROOT, TrainingJob, processes_with

NUMBERS = itertools.count(os.getpid() % 20000)
PORT = 29400
RESUMED = "resumed from the checkpoint of step "


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class Network:
    """Hosts 0 and 1 have the addresses .2 and .3, the switch .1."""

    number: int = field(default_factory=lambda: next(NUMBERS))

    @property
    def switch(self) -> str:
        return f"slw{self.number}"

    def address(self, last: int) -> str:
        return f"10.{200 + self.number // 250 % 50}.{self.number % 250}.{last}"

    def host(self, rank: int) -> str:
        return f"slw{self.number}-{rank}"

    def cut(self, rank: int) -> None:
        """Takes the cable out of the switch."""
        ip("-n", self.switch, "link", "set", f"{self.host(rank)}c", "down")

    def mend(self, rank: int) -> None:
        ip("-n", self.switch, "link", "set", f"{self.host(rank)}c", "up")

    def part(self, isolated: str = "on") -> None:
        """Lets nothing pass between the hosts; both still reach the switch."""
        for rank in (0, 1):
            ip("-n", self.switch, "link", "set", f"{self.host(rank)}c", "type", "bridge_slave", "isolated", isolated)

    def join(self) -> None:
        self.part("off")

    def __enter__(self) -> "Network":
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
        ip("-n", self.switch, "addr", "add", f"{self.address(1)}/24", "dev", "switch")
        ip("-n", self.switch, "link", "set", "lo", "up")
        ip("-n", self.switch, "link", "set", "switch", "up")
        for rank in (0, 1):
            host = self.host(rank)
            ip("netns", "add", host)
            ip("-n", self.switch, "link", "add", f"{host}c", "type", "veth", "peer", "name", "eth0", "netns", host)
            ip("-n", self.switch, "link", "set", f"{host}c", "master", "switch", "up")
            ip("-n", host, "addr", "add", f"{self.address(2 + rank)}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")
            ip("-n", host, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in (self.host(0), self.host(1), self.switch):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


@dataclass
class HostsJob(TrainingJob):
    """A training on two hosts that share nothing but the store; the last process of each host counts."""

    network: Network = field(default_factory=Network)
    meeting_place: "subprocess.Popen[bytes] | None" = None
    log_times: list[tuple[float, str]] = field(default_factory=list)
    """When each line of the nodes' logs was first seen."""
    _read: dict[Path, int] = field(default_factory=dict)

    def start(self) -> None:
        self.home.mkdir(parents=True)
        (self.home / "spec.json").write_text(self.spec.model_dump_json())
        self.open_meeting_place()
        self.processes = [self.start_node(rank) for rank in range(self.nodes)]

    def open_meeting_place(self) -> None:
        program = [sys.executable, "-m", "pipeline.training.rendezvous", self.network.address(1), str(PORT)]
        command = ["ip", "netns", "exec", self.network.switch, *program]
        with (self.home / "meeting-place.log").open("ab") as log:
            self.meeting_place = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    def start_node(self, rank: int) -> "subprocess.Popen[bytes]":
        """On its host, whose disk nobody else sees."""
        environment = {
            **os.environ,
            "SLIPWAY_HOME": str(self.home / f"host-{rank}"),
            "SLIPWAY_STORE": f"file://{self.home}/store",
            "SLIPWAY_NODES": str(self.nodes),
            "SLIPWAY_NODE_RANK": str(rank),
            "SLIPWAY_RENDEZVOUS": f"{self.network.address(1)}:{PORT}",
            "SLIPWAY_JOB_ID": f"job-{self.network.number}",
            "SLIPWAY_CPUS": "1",
        }
        step = [sys.executable, "-m", "pipeline", "finetune", "--spec", str(self.home / "spec.json")]
        command = ["ip", "netns", "exec", self.network.host(rank), *step, "--out", self.out_uri]
        with (self.home / f"node-{rank}.log").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def workers(self) -> list[int]:
        return processes_with(self.key, "pipeline.training.worker", without="torch.distributed.run")

    def ranks_of(self, rank: int) -> list[int]:
        """The process ids of the ranks on one host."""
        return [pid for pid in self.workers() if f"/host-{rank}/".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def follow(self) -> list[tuple[float, str]]:
        """Reads what is new in the logs."""
        for path in sorted(self.home.glob("node-*.log")):
            data = path.read_bytes()[self._read.get(path, 0) :]
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            self.log_times += [(time.monotonic(), line) for line in whole.decode(errors="replace").splitlines()]
        return self.log_times

    def watch(self, until: Callable[[], bool], what: str) -> None:
        """Until `until`, following the logs."""
        deadline = time.monotonic() + DEADLINE_S
        while not until():
            assert time.monotonic() < deadline, f"{what} never came about:\n{self.log}"
            self.follow()
            time.sleep(0.02)

    def to_its_end(self, *, without: tuple[int, ...] = ()) -> None:
        """Starts again what dies, as a backend would, until every node has ended well."""
        kept = [rank for rank in range(self.nodes) if rank not in without]
        deadline = time.monotonic() + DEADLINE_S
        while any(self.processes[rank].poll() != 0 for rank in kept):
            assert time.monotonic() < deadline, f"the job never ended:\n{self.log}"
            if self.meeting_place is None or self.meeting_place.poll() is not None:
                self.open_meeting_place()
            for rank in kept:
                if self.processes[rank].poll():
                    self.processes[rank] = self.start_node(rank)
            self.follow()
            time.sleep(0.05)
        self.follow()

    def stop(self) -> None:
        for process in (*self.processes, self.meeting_place):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()


@dataclass(frozen=True)
class Recovery:
    """What a fault has cost."""

    what: str
    noticed_s: float
    """Until the ranks that were there are gone."""
    next_step_s: float
    """Until the first figures of new ranks."""
    steps_lost: int

    def __str__(self) -> str:
        figures = f"noticed {self.noticed_s:.1f} s, next figures {self.next_step_s:.1f} s, {self.steps_lost} steps lost"
        return f"{self.what}: {figures}"


def measure(
    job: HostsJob, what: str, fault: Callable[[], None], *, back: Callable[[], None] = lambda: None
) -> Recovery:
    """Commits `fault`, follows the job until new ranks have told of a step, and calls `back` on the way."""
    ranks, seen = set(job.workers()), len(job.follow())
    began = time.monotonic()
    fault()
    job.watch(lambda: not ranks & set(job.workers()), "the end of the ranks that were there")
    noticed = time.monotonic()
    back()

    def resumed_at() -> int:
        """The line in which new ranks say where they begin; 0 while there is none."""
        lines = enumerate(job.follow())
        return max((number for number, (_, line) in lines if number >= seen and RESUMED in line), default=0)

    def new_lines() -> list[tuple[float, str]]:
        return job.log_times[number:] if (number := resumed_at()) else []

    job.watch(lambda: any("progress" in line for _, line in new_lines()), "a step of new ranks")
    lines = new_lines()
    last = steps_told(job.log_times[: resumed_at()])[-1]
    at = next(moment for moment, line in lines if "progress" in line)
    return Recovery(what, noticed - began, at - began, last - int(lines[0][1].rpartition(" ")[2]))


def steps_told(lines: list[tuple[float, str]]) -> list[int]:
    return [int(step) for _, line in lines for step in re.findall(r"progress (\d+)/.*loss=", line)]


@contextlib.contextmanager
def on_two_hosts(job: HostsJob, *, parted: bool = False) -> Iterator[HostsJob]:
    with job.network:
        if parted:
            job.network.part()
        job.start()
        try:
            yield job
        finally:
            job.stop()
