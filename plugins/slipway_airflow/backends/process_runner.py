"""Watches over one job of the process backend. Standard library only, run as a script:

    python -I -S process_runner.py JOB_FOLDER

It reads JOB_FOLDER/request.json, leaves the caller's session, starts the job's nodes, writes JOB_FOLDER/log, and as
the last thing JOB_FOLDER/exit_code. While it lives it holds a lock on JOB_FOLDER/alive, which the kernel drops
however it ends. The caller's process returns as soon as the job is on its way.

container_runner.py does the same for one node, inside its container.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

EXIT_TRANSIENT = 75
EXIT_DEADLINE = 124
EXIT_CANCELLED = 143
VERDICTS = (64, 65)
"""Exit codes that name a cause. A node's verdict counts more than the crash of a neighbour that it brought down."""
OUTSIDE_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that come from outside the program (a person, the out-of-memory killer): worth another try."""
GRACE_S = 10.0
"""Between asking a node to stop and killing it."""
VERDICT_WAIT_S = 2.0
"""How long the other nodes get to say their own verdict after one has failed."""
LINE_LIMIT_BYTES = 1 << 16
PR_SET_PDEATHSIG = 1
JOB_VARIABLE = "SLIPWAY_JOB_ID"
RANK_VARIABLE = "SLIPWAY_NODE_RANK"
MAX_RETURNS = 3
"""How often one node of a job that may go on with fewer is started again, and how often their meeting place."""
MEETING_PLACE = ("-m", "pipeline.training.rendezvous")


class Node:
    """One process of the job, and what it has written of its current line."""

    def __init__(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        self.rank = rank
        self.process = process
        self.prefix = f"[node {rank}] ".encode() if rank else b""
        self.pending = b""
        self.open = True

    @property
    def output(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout


class Runner:
    """Starts the nodes, copies their output, and decides how the job ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.request = json.loads((folder / "request.json").read_text())
        self.log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.selector = selectors.DefaultSelector()
        self.nodes: list[Node] = []
        self.codes: dict[int, int] = {}
        """By rank, in the order in which the nodes ended."""
        self.terminated = False
        signal.signal(signal.SIGTERM, self._terminate)

    def run(self) -> int:
        deadline = time.monotonic() + self.request["deadline_s"]
        try:
            for variables in self._variables():
                self._start(int(variables[RANK_VARIABLE]), variables)
        except OSError as error:
            self.say(f"error {EXIT_TRANSIENT} OSError: cannot start the job's program: {error}")
            self.stop()
            return EXIT_TRANSIENT
        code = self._wait(deadline)
        self.stop()
        return code

    def _variables(self) -> list[dict[str, str]]:
        """What each node that runs here is told."""
        rendezvous = f"127.0.0.1:{free_port()}"
        return [node_variables(self.request, rank, rendezvous) for rank in range(self.request["nodes"])]

    def _start(self, rank: int, variables: dict[str, str]) -> None:
        process = subprocess.Popen(
            [self.request["interpreter"], *self.request["arguments"]],
            cwd=self.request["directory"],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        node = Node(rank, process)
        os.set_blocking(node.output.fileno(), False)
        self.selector.register(node.output, selectors.EVENT_READ, node)
        self.nodes.append(node)

    def _wait(self, deadline: float) -> int:
        """Until all nodes have ended, one has failed, the deadline has passed or a stop was asked for."""
        while time.monotonic() < deadline:
            self._copy_output(timeout_s=0.2)
            self._collect()
            if self.terminated:
                return self._termination()
            if self._has_failed():
                return self._verdict(min(deadline, time.monotonic() + VERDICT_WAIT_S))
            if len(self.codes) == len(self.nodes):
                return 0
        limit = f"{self.request['deadline_s']:g} s"
        self.say(
            f"error {EXIT_DEADLINE} DeadlineExceeded: the job ran past its deadline of {limit};"
            " raise the step's limit under `deadlines` in the recipe, or make the work smaller"
        )
        return EXIT_DEADLINE

    def _has_failed(self) -> bool:
        """Whether a node has ended that the job needs."""
        return any(self.codes.values())

    def _termination(self) -> int:
        if (self.folder / "cancelled").exists():
            self.say("cancelled")
            return EXIT_CANCELLED
        self.say(f"error {EXIT_TRANSIENT} JobLost: the job was terminated from outside (SIGTERM)")
        return EXIT_TRANSIENT

    def _verdict(self, until: float) -> int:
        """The exit code of a job with a failed node: the first that names a cause, else the first."""
        while time.monotonic() < until and len(self.codes) < len(self.nodes) and not self._named_cause():
            self._copy_output(timeout_s=0.1)
            self._collect()
        rank, code = self._named_cause() or next((rank, code) for rank, code in self.codes.items() if code)
        self._copy_output(timeout_s=0)
        return self._judge(rank, code)

    def _judge(self, rank: int, code: int) -> int:
        """The job's exit code, from how the node that decides it has ended; says what that code does not."""
        if code == EXIT_CANCELLED:
            self.say(f"error {EXIT_TRANSIENT} JobLost: node {rank} was ended from outside (SIGTERM)")
            return EXIT_TRANSIENT
        if code >= 0:
            if self.request["nodes"] > 1:
                self.say(f"node {rank} ended with exit code {code}")
            return code
        name = signal.Signals(-code).name
        if -code in OUTSIDE_SIGNALS:
            self.say(f"error {EXIT_TRANSIENT} JobLost: node {rank} was killed from outside ({name})")
            return EXIT_TRANSIENT
        self.say(f"error {128 - code} Crash: node {rank} crashed ({name})")
        return 128 - code

    def _named_cause(self) -> tuple[int, int] | None:
        return next(((rank, code) for rank, code in self.codes.items() if code in VERDICTS), None)

    def _collect(self) -> None:
        for node in self.nodes:
            if node.rank not in self.codes and (code := node.process.poll()) is not None:
                self.codes[node.rank] = code

    def _copy_output(self, timeout_s: float) -> None:
        if not any(node.open for node in self.nodes):
            time.sleep(timeout_s)
            return
        for key, _ in self.selector.select(timeout_s):
            self._copy_from(key.data)

    def _copy_from(self, node: Node) -> None:
        data = node.output.read(LINE_LIMIT_BYTES)
        if data is None:
            return
        if not data:
            self.selector.unregister(node.output)
            node.output.close()
            node.open = False
        *lines, node.pending = (node.pending + data).split(b"\n")
        if node.pending and (not node.open or len(node.pending) > LINE_LIMIT_BYTES):
            lines, node.pending = [*lines, node.pending], b""
        # A progress bar overwrites its line after "\r"; only its last state is worth keeping.
        shown = [line.rstrip(b"\r").rsplit(b"\r", 1)[-1] for line in lines]
        self._write(b"".join(node.prefix + line + b"\n" for line in shown))

    def say(self, message: str) -> None:
        self._write(message.encode() + b"\n")

    def _write(self, data: bytes) -> None:
        # A full disk may cost log lines; it must not cost the job.
        with contextlib.suppress(OSError):
            os.write(self.log, data)

    def stop(self) -> None:
        """Ends every process of the job, also those that left their node's session, and keeps what they said."""
        self._signal(signal.SIGTERM)
        until = time.monotonic() + GRACE_S
        while time.monotonic() < until and any(node.process.poll() is None for node in self.nodes):
            self._copy_output(timeout_s=0.1)
        self._signal(signal.SIGKILL)
        for node in self.nodes:
            node.process.wait()
        kill_processes(self.request["job_id"])
        while any(node.open for node in self.nodes):
            self._copy_output(timeout_s=0.1)

    def _signal(self, number: signal.Signals) -> None:
        for node in self.nodes:
            if node.process.poll() is None:
                os.killpg(node.process.pid, number)

    def _terminate(self, _number: int, _frame: object) -> None:
        self.terminated = True


class ElasticRunner(Runner):
    """Of a job that goes on with fewer nodes: starts those that die again, and keeps the place where they meet."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.rendezvous = f"127.0.0.1:{free_port()}"
        self.meeting_place: subprocess.Popen[bytes] | None = None
        self.returns: dict[int, int] = {}
        """By rank, how often it has been started again; the meeting place has rank -1."""

    def _variables(self) -> list[dict[str, str]]:
        self._open_meeting_place()
        return [node_variables(self.request, rank, self.rendezvous) for rank in range(self.request["nodes"])]

    def _open_meeting_place(self) -> None:
        host, _, port = self.rendezvous.rpartition(":")
        self.meeting_place = subprocess.Popen(
            [self.request["interpreter"], *MEETING_PLACE, host, port],
            cwd=self.request["directory"],
            env={**os.environ, JOB_VARIABLE: self.request["job_id"]},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    def _has_failed(self) -> bool:
        if self.meeting_place and self.meeting_place.poll() is not None and self._may_return(-1):
            self.say("the place where the nodes meet was lost: opening it again")
            self._open_meeting_place()
        failed = [rank for rank, code in self.codes.items() if code]
        return any(self._is_fatal(rank) for rank in failed)

    def _is_fatal(self, rank: int) -> bool:
        """Starts a node that has failed again, or goes on without it; True if neither is possible."""
        code, left = self.codes[rank], len(self.nodes) - 1
        passing = code < 0 or code in (EXIT_TRANSIENT, EXIT_CANCELLED)
        if not passing or 0 in self.codes.values():
            # It would only fail again; or the training is over, and this node may have had to publish it.
            return True
        returns = self._may_return(rank)
        if not returns and left < self.request["min_nodes"]:
            return True
        self._drop(rank)
        if returns:
            self.say(f"node {rank} was lost ({_how(code)}): starting it again, {self.returns[rank]} of {MAX_RETURNS}")
            self._start(rank, node_variables(self.request, rank, self.rendezvous))
        else:
            self.say(f"node {rank} was lost ({_how(code)}) once too often: the job goes on with {left} nodes")
        return False

    def _drop(self, rank: int) -> None:
        """Forgets a node that has ended, once all it said is in the log."""
        (node,) = (node for node in self.nodes if node.rank == rank)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.process.pid, signal.SIGKILL)  # a child of it may hold the output open
        until = time.monotonic() + VERDICT_WAIT_S
        while node.open and time.monotonic() < until:
            self._copy_output(timeout_s=0.1)
        if node.open:
            self.selector.unregister(node.output)
            node.output.close()
        self.nodes.remove(node)
        del self.codes[rank]

    def _may_return(self, rank: int) -> bool:
        self.returns[rank] = self.returns.get(rank, 0) + 1
        return self.returns[rank] <= MAX_RETURNS

    def stop(self) -> None:
        super().stop()
        if self.meeting_place:
            self.meeting_place.kill()
            self.meeting_place.wait()


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def node_variables(request: dict[str, Any], rank: int, rendezvous: str) -> dict[str, str]:
    """What a node learns about its job."""
    return {
        JOB_VARIABLE: request["job_id"],
        "SLIPWAY_NODES": str(request["nodes"]),
        RANK_VARIABLE: str(rank),
        "SLIPWAY_RENDEZVOUS": rendezvous,
    }


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the runner dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def job_processes(job_id: str) -> list[int]:
    """The processes that carry the job's id in their environment."""
    marker = f"{JOB_VARIABLE}={job_id}".encode()
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if marker in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def kill_processes(job_id: str) -> int:
    """Kills what a job left behind; how many processes."""
    killed = set()
    while remaining := [pid for pid in job_processes(job_id) if not is_zombie(pid)]:
        for pid in remaining:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed.update(remaining)
        time.sleep(0.02)
    return len(killed)


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with temporary.open("x") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def detach() -> None:
    """Leaves the caller's session and process group; the caller's process goes on in `main`'s parent branch."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)


def main(folder: Path) -> int:
    """Forks: the child becomes the runner, the parent returns once the child holds its lock."""
    ready, started = os.pipe()
    if os.fork():
        os.close(started)
        return 0 if os.read(ready, 1) else 1
    os.close(ready)
    detach()
    alive = (folder / "alive").open("w")
    fcntl.flock(alive, fcntl.LOCK_EX)
    write_atomically(folder / "runner.json", json.dumps({"pid": os.getpid(), "started": time.time()}))
    elastic = json.loads((folder / "request.json").read_text()).get("min_nodes")
    runner = ElasticRunner(folder) if elastic else Runner(folder)
    os.write(started, b"1")
    os.close(started)
    code = runner.run()
    write_atomically(folder / "exit_code", f"{code}\n")
    # At once, and with the lock: who finds it free may rely on nothing being left of the job.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
