"""Which processes belong to a home folder, and how they are ended.

A process belongs to the home if it carries the home's marker in its environment, if a supervised program's pid file
names it, if it writes its output to a job's log, or if it descends from such a process. More than one sign, because
programs overwrite their environment when they set a title, and children outlive their parents.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from pipeline.stack.layout import Layout

MARKER = "SLIPWAY_SUPERVISED"
"""Set for supervisord, inherited by everything below it: the home folder."""
TERM_WAIT_S = 10.0
KILL_WAIT_S = 10.0


def owned(layout: Layout) -> list[psutil.Process]:
    """Every process of the home, wherever its parent went; never this one nor its ancestors."""
    named = _named_by_pid_files(layout)
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if (process.pid, round(process.create_time(), 1)) in named or _is_marked(process, layout):
                found[process.pid] = process
                found |= {child.pid: child for child in process.children(recursive=True)}
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    own = psutil.Process()
    for process in (own, *own.parents()):
        found.pop(process.pid, None)
    return list(found.values())


def group_of(pid: int) -> list[psutil.Process]:
    """The process, its descendants, and the members of its process group."""
    members: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == pid or process.pid == pid:
                members[process.pid] = process
                members |= {child.pid: child for child in process.children(recursive=True)}
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return list(members.values())


def end(processes: Iterable[psutil.Process]) -> None:
    """SIGTERM to each, then SIGKILL to those that stay."""
    left = [process for process in processes if process.is_running()]
    for process in left:
        _send(process, "terminate")
    _, left = psutil.wait_procs(left, timeout=TERM_WAIT_S)
    kill(left)
    psutil.wait_procs(left, timeout=KILL_WAIT_S)


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL to each, without waiting."""
    for process in processes:
        _send(process, "kill")


def listener(port: int) -> psutil.Process | None:
    """Who listens on a TCP port of this machine, if that may be known."""
    for process in psutil.process_iter():
        try:
            if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in process.net_connections("tcp")):
                return process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return None


def _send(process: psutil.Process, action: str) -> None:
    try:
        getattr(process, action)()
    except psutil.NoSuchProcess:
        return


def _named_by_pid_files(layout: Layout) -> set[tuple[int, float]]:
    paths = [*(layout.supervisor_path / "programs").glob("*.pid")]
    found = set()
    for path in paths:
        text = path.read_text()
        if text:
            entry = json.loads(text)
            found.add((int(entry["pid"]), round(float(entry["created"]), 1)))
    return found


def _is_marked(process: psutil.Process, layout: Layout) -> bool:
    environment = process.environ()
    home = str(layout.home_path)
    if environment.get(MARKER) == home:
        return True
    if environment.get("SLIPWAY_HOME") == home and environment.get("SLIPWAY_JOB_ID"):
        return True
    return any(_output(process, number).startswith(f"{layout.jobs_path}/") for number in (1, 2))


def _output(process: psutil.Process, number: int) -> str:
    """The file behind a descriptor, "" if that may not be known."""
    try:
        return os.readlink(Path("/proc") / str(process.pid) / "fd" / str(number))
    except OSError:
        return ""
