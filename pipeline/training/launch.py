"""torchrun on this node: starts it, watches it, and turns the way it ended into one clear error.

The step's process stays the parent: it passes SIGTERM on, and ends torchrun when a rank has left a fault that no
restart would change. torchrun restarts all ranks after any other death, up to MAX_RESTARTS times.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pipeline.contracts.finetune import Finetune
from pipeline.errors import SpecError, TransientError
from pipeline.settings import ROOT, Settings, child_environment
from pipeline.training.plan import TrainingPlan, read_fault
from pipeline.training.watchdog import STALLED

MAX_RESTARTS = 3
MAX_RESTARTS_AMONG_FEWER = 10
"""Where nodes may come and go, each that dies costs the others a restart."""
POLL_S = 0.2
STOP_S = 20.0
"""How long torchrun may take to end its ranks after SIGTERM."""
LAST_CALL_S = 5
"""How long those who suffice wait for a node that is on its way: a restart later would cost more."""
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(512 << 20)}
"""glibc hands freed memory back to the kernel, which then zeroes it again for the next step: hundreds of page faults a
step, and a twentieth of its processor time."""


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def threads_per_rank(settings: Settings, procs_per_node: int) -> int:
    """The node's cores, shared among its ranks: those it was given, else the machine's, which nodes that meet on
    loopback share."""
    if settings.cpus:
        return max(1, settings.cpus // procs_per_node)
    nodes_here = settings.nodes if settings.rendezvous and is_loopback(_host(settings.rendezvous)) else 1
    return max(1, len(os.sched_getaffinity(0)) // (procs_per_node * nodes_here))


def torchrun_command(settings: Settings, plan_path: Path, training: Finetune, *, job_id: str) -> list[str]:
    """The agent's command line on this node.

    The nodes meet at a store that the first of them hosts, or, where nodes may come and go, one that belongs to none
    (`pipeline.training.rendezvous`).

    Raises:
        SpecError: several nodes, and no place to meet.
    """
    if settings.nodes > 1 and settings.rendezvous is None:
        raise SpecError(
            f"SLIPWAY_NODES is {settings.nodes} but SLIPWAY_RENDEZVOUS is not set: give host:port of the first node"
        )
    rendezvous = settings.rendezvous or f"127.0.0.1:{free_port()}"
    elastic = training.min_nodes is not None and settings.rendezvous is not None
    config = {
        "is_host": 1 if settings.node_rank == 0 and not elastic else 0,
        "join_timeout": training.join_timeout_s,
        "last_call_timeout": LAST_CALL_S if elastic else 1,
        "keep_alive_interval": 1,
        # A busy machine may keep an agent waiting for seconds; one that is gone is noticed by its backend, unless the
        # others are to go on without it.
        "keep_alive_max_attempt": 5 if elastic else 15,
    }
    command = [
        *(sys.executable, "-m", "torch.distributed.run"),
        f"--nnodes={training.min_nodes}:{settings.nodes}" if elastic else f"--nnodes={settings.nodes}",
        f"--nproc-per-node={training.procs_per_node}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={rendezvous}",
        f"--rdzv-id={job_id}",
        "--rdzv-conf=" + ",".join(f"{name}={value}" for name, value in config.items()),
        f"--max-restarts={max_restarts(training)}",
        f"--log-dir={plan_path.parent / 'torchrun'}",
    ]
    if elastic or is_loopback(_host(rendezvous)):
        command.append(f"--local-addr={address_towards(_host(rendezvous))}")
    return [*command, "-m", "pipeline.training.worker", f"--plan={plan_path}", "--local-rank=${local_rank}"]


def max_restarts(training: Finetune) -> int:
    return MAX_RESTARTS if training.min_nodes is None else MAX_RESTARTS_AMONG_FEWER


def _host(rendezvous: str) -> str:
    return rendezvous.rsplit(":", 1)[0]


def address_towards(host: str) -> str:
    """The address of this machine that `host` sees; no name of it has to be known to anyone.

    Raises:
        TransientError: there is no such host, or no way to it.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise TransientError(f"SLIPWAY_RENDEZVOUS names the host {host}, which cannot be reached: {error}") from error


def await_meeting_place(settings: Settings, training: Finetune) -> None:
    """Until the place where the nodes meet listens: the node that hosts it may begin later than this one.

    Raises:
        TransientError: it does not within `join_timeout_s`.
    """
    hosted_here = settings.node_rank == 0 and training.min_nodes is None
    if settings.rendezvous is None or hosted_here:
        return
    host, _, port = settings.rendezvous.rpartition(":")
    deadline = time.monotonic() + training.join_timeout_s
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=POLL_S * 10).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise TransientError(
                    f"nobody answered at {settings.rendezvous} (SLIPWAY_RENDEZVOUS), where the nodes meet, within"
                    f" {training.join_timeout_s} s (finetune.join_timeout_s): {error}; the node or program that is to"
                    " listen there is not running, or a firewall is in the way"
                ) from error
            time.sleep(POLL_S)


def interface_of(address: str) -> str:
    """The name of the network interface that has `address`."""
    import psutil

    found = [name for name, own in psutil.net_if_addrs().items() if any(entry.address == address for entry in own)]
    if not found:
        raise TransientError(f"no network interface of this machine has the address {address} any more")
    return str(found[0])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def has_accelerator() -> bool:
    """Whether the ranks will find one. Asked in a process of its own: this one does without torch."""
    code = "import torch; print(torch.cuda.is_available())"
    return (
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout == "True\n"
    )


def worker_environment(plan: TrainingPlan, rendezvous: str | None = None) -> dict[str, str]:
    """The ranks' environment: their share of the cores, and what makes their arithmetic repeatable.

    Args:
        rendezvous: host:port where nodes that may come and go meet: the ranks talk to each other on the same network.
    """
    network = {"GLOO_SOCKET_IFNAME": interface_of(address_towards(_host(rendezvous)))} if rendezvous else {}
    changes = {
        **network,
        "OMP_NUM_THREADS": str(plan.threads),
        **KEEP_FREED_MEMORY,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "HF_HUB_OFFLINE": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TORCHELASTIC_ERROR_FILE": str(agent_error_path(plan)),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # see engine.join
        "MPLCONFIGDIR": str(plan.fault_path.parent / "matplotlib"),
    }
    return child_environment(changes)


def agent_error_path(plan: TrainingPlan) -> Path:
    """Where torchrun says what it died of itself; it gives its ranks files of their own."""
    return plan.fault_path.with_name("agent.json")


def run(command: list[str], plan: TrainingPlan, log_folder: Path, *, rendezvous: str | None = None) -> None:
    """Runs torchrun to its end.

    Raises:
        SlipwayError: the fault that a rank left.
        TransientError: too few nodes came, a rank was killed too often, or another node was lost.
        RuntimeError: a rank failed in a way that nobody foresaw.
        SystemExit: SIGTERM came; all ranks have ended.
    """
    agent_error_path(plan).unlink(missing_ok=True)
    process = subprocess.Popen(
        command, cwd=ROOT, env=worker_environment(plan, rendezvous), start_new_session=True, preexec_fn=_die_with_parent
    )
    with _stopped_by_sigterm(process):
        while process.poll() is None:
            if plan.fault_path.exists():
                stop(process)
            time.sleep(POLL_S)
    fault = read_fault(plan.fault_path)
    if fault:
        raise fault
    if process.returncode != 0:
        raise _no_meeting(plan) or _failure(plan, log_folder, process.returncode)


def _die_with_parent() -> None:
    """In torchrun, before it starts: Linux sends it SIGTERM when the step dies, even by kill -9."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Ends torchrun and its ranks."""
    process.terminate()
    try:
        process.wait(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _stopped_by_sigterm(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    def on_sigterm(number: int, _frame: FrameType | None) -> None:
        stop(process)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("training must be launched from the main thread, which alone can be told to stop")
    before = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if process.poll() is None:
            stop(process)


def _no_meeting(plan: TrainingPlan) -> TransientError | None:
    """Whether the nodes never met, or could not meet again."""
    path, settings = agent_error_path(plan), plan.settings
    message = _read_error(path)[1] if path.exists() else ""
    if message.startswith("RendezvousTimeoutError"):
        return TransientError(
            f"fewer than {settings.min_nodes or settings.nodes} nodes came together within {settings.join_timeout_s} s"
            " (finetune.join_timeout_s); the logs of those that did not come say why, or show no beginning; the next"
            " attempt goes on from the last checkpoint, if there is one"
        )
    if message.startswith("RendezvousConnectionError"):
        return TransientError(
            "the place where the nodes meet (SLIPWAY_RENDEZVOUS) was lost: the first node, or the program that keeps"
            " it, has ended, or the network is cut; the next attempt goes on from the last checkpoint"
        )
    return None


def _failure(plan: TrainingPlan, log_folder: Path, returncode: int) -> Exception:
    """The first error of the last attempt: the others follow from it."""
    errors = sorted((_read_error(path) for path in log_folder.glob("**/error.json")), key=lambda error: error[0])
    own = [message for _, message in errors if not _is_consequence(message)]
    if own:
        return RuntimeError(f"training failed: {own[-1]}")
    stalls = [message for _, message in errors if STALLED in message]
    restarts = max_restarts(plan.settings)
    if returncode < 0:
        cause = f"torchrun was killed (signal {-returncode}), perhaps for want of memory"
    elif stalls:
        cause = f"after {restarts} restarts {stalls[-1]}"
    else:
        detail = f"; the ranks saw: {errors[-1][1]}" if errors else ""
        cause = f"a rank or a node was killed more than {restarts} times or is out of memory{detail}"
    return TransientError(
        f"training ended before its time (torchrun exit code {returncode}): {cause};"
        " the next attempt goes on from the last checkpoint"
    )


def _is_consequence(message: str) -> bool:
    """Whether a rank died only because another one did."""
    signs = (
        STALLED,
        "Connection closed by peer",
        "Connection reset by peer",
        "DistNetworkError",
        "DistBackendError",
        "gloo",
    )
    return any(sign in message for sign in signs)


def _read_error(path: Path) -> tuple[int, str]:
    content = json.loads(path.read_bytes())["message"]
    if isinstance(content, str):
        return 0, content
    return int(content["extraInfo"]["timestamp"]), content["message"]
