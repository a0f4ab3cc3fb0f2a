"""A lock between the processes of one machine: a file that the kernel frees when its holder dies."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import TransientError

WAIT_S = 300.0
_POLL_S = 0.05


@contextmanager
def file_lock(path: Path, wait_s: float = WAIT_S) -> Iterator[None]:
    """Holds `path` for the length of the block.

    Raises:
        TransientError: another process held it for all of `wait_s`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        give_up_at = time.monotonic() + wait_s
        while not _try_lock(file.fileno()):
            if time.monotonic() > give_up_at:
                raise TransientError(f"another process has held {path} for {wait_s:g} s; see whether one hangs")
            time.sleep(_POLL_S)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
