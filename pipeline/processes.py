"""Children that do not outlive a step: torchrun's ranks, an inference engine's cores, data loaders.

SIGTERM, which is how a backend cancels a job, becomes SystemExit, so that `finally` blocks and `with` blocks run;
what the step started and left running is stopped when it ends, however it ends.
"""

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

EXIT_TERMINATED = 128 + signal.SIGTERM
_PR_SET_PDEATHSIG = 1
GRACE_S = 5.0
"""Between asking a child to end and killing it."""


@contextmanager
def children_end_with_us() -> Iterator[None]:
    """For the length of the block, in the main thread. Children from before the block are left alone."""
    others = set(_descendants())
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        # A second SIGTERM would only interrupt the cleaning up; a backend that loses patience sends SIGKILL.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _stop([child for child in _descendants() if child not in others])
        signal.signal(signal.SIGTERM, before)


def end_with_parent() -> None:
    """Linux ends this process when its parent dies, even by kill -9: nothing is left behind alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _stop(children: list[psutil.Process]) -> None:
    """Asks first, and kills after GRACE_S."""
    asked = [child for child in children if not _ends_by_itself(child)]
    for child in asked:
        _send(child, signal.SIGTERM)
    _, alive = psutil.wait_procs(asked, timeout=GRACE_S)
    for child in alive:
        _send(child, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=GRACE_S)


def _ends_by_itself(child: psutil.Process) -> bool:
    """Python's resource tracker ignores SIGTERM and ends, having freed shared memory, when its parent has gone."""
    try:
        return any("multiprocessing.resource_tracker" in word for word in child.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return True


def _send(child: psutil.Process, number: signal.Signals) -> None:
    try:
        child.send_signal(number)
    except psutil.NoSuchProcess:
        return  # it ended by itself


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(EXIT_TERMINATED)
