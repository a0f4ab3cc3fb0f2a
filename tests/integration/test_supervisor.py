"""The supervisor's client against a real supervisord."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.stack import processes
from pipeline.stack.layout import Layout
from pipeline.stack.supervisor import Program, Supervisor

pytestmark = pytest.mark.integration

SLEEPER = "import os, time; print('up', os.environ.get('GREETING'), flush=True); time.sleep(600)"
NAP = "import time; time.sleep(600)"
PARENT = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {NAP!r}]); "


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    """A started supervisord with a home of its own."""
    supervisor = Supervisor(tmp_path / "home with a space")
    supervisor.start()
    yield supervisor
    supervisor.stop()
    assert processes.owned(supervisor.layout) == []


def sleeper(name: str = "sleeper", **changes: object) -> Program:
    return Program.model_validate(
        {"name": name, "command": (sys.executable, "-c", SLEEPER), "environment": {"GREETING": "hello"}, **changes}
    )


def wait_for(look: Callable[[], Any], what: str, timeout_s: float = 120.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    pytest.fail(f"waited {timeout_s:.0f} s for {what}")


def running_pid(supervisor: Supervisor, name: str, *, other_than: int | None = None) -> int:
    def look() -> int | None:
        state = supervisor.state(name)
        return state.pid if state and state.state == "RUNNING" and state.pid != other_than else None

    return wait_for(look, f"{name} to run")


def test_a_program_put_twice_is_started_once(supervisor: Supervisor) -> None:
    """The same program again keeps its process."""
    supervisor.put(sleeper())
    pid = running_pid(supervisor, "sleeper")
    supervisor.put(sleeper())
    assert running_pid(supervisor, "sleeper") == pid


def test_a_changed_program_is_started_anew(supervisor: Supervisor) -> None:
    """A different environment means a new process that has it."""
    supervisor.put(sleeper())
    pid = running_pid(supervisor, "sleeper")
    supervisor.put(sleeper(environment={"GREETING": 'a "quoted" 100% ; #value'}))
    fresh = running_pid(supervisor, "sleeper", other_than=pid)
    assert psutil.Process(fresh).environ()["GREETING"] == 'a "quoted" 100% ; #value'


def test_the_log_holds_what_the_program_said(supervisor: Supervisor) -> None:
    """Both streams go to one file under logs."""
    supervisor.put(sleeper())
    log_path = supervisor.layout.log_path("sleeper")
    wait_for(lambda: log_path.exists() and "up hello" in log_path.read_text(), "the greeting in the log")


def test_a_removed_program_leaves_no_process_and_can_be_removed_again(supervisor: Supervisor) -> None:
    """Its children end with it."""
    supervisor.put(sleeper(command=(sys.executable, "-c", PARENT + SLEEPER)))
    pid = running_pid(supervisor, "sleeper")
    child = wait_for(lambda: psutil.Process(pid).children(), "the child")[0]
    supervisor.remove("sleeper")
    supervisor.remove("sleeper")
    assert supervisor.state("sleeper") is None
    assert not psutil.pid_exists(pid)
    assert not child.is_running()


def test_a_program_that_is_not_ready_is_not_waited_for(supervisor: Supervisor) -> None:
    """It ignores SIGTERM, as an engine that loads does, and would have ten minutes to drain if it were ready."""
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    command = (sys.executable, "-c", deaf)
    supervisor.put(sleeper(command=command, stop_wait_s=600, ready_url="http://127.0.0.1:9/health"))
    process = psutil.Process(running_pid(supervisor, "sleeper"))
    wait_for(lambda: "SIG_IGN" in " ".join(process.cmdline()), "the program itself")
    supervisor.remove("sleeper")
    assert not process.is_running()


def test_a_program_that_takes_long_to_end_holds_up_no_other(supervisor: Supervisor, tmp_path: Path) -> None:
    """A replica that finishes its streams, and another model's that is to start meanwhile."""
    asked, may_end = tmp_path / "asked", tmp_path / "may_end"
    stubborn = (
        "import pathlib, signal, sys, time\n"
        "asked, may_end = map(pathlib.Path, sys.argv[1:])\n"
        "signal.signal(signal.SIGTERM, lambda *_: asked.touch())\n"
        "print('up', flush=True)\n"
        "while not may_end.exists(): time.sleep(0.05)\n"
    )
    command = (sys.executable, "-c", stubborn, str(asked), str(may_end))
    supervisor.put(sleeper("stubborn", command=command, stop_wait_s=120))
    log_path = supervisor.layout.log_path("stubborn")
    wait_for(lambda: log_path.exists() and "up" in log_path.read_text(), "the handler")
    with ThreadPoolExecutor(1) as pool:
        removal = pool.submit(supervisor.remove, "stubborn")
        wait_for(asked.exists, "the request to end")
        supervisor.put(sleeper())
        running_pid(supervisor, "sleeper")
        assert not removal.done()
        may_end.touch()
        removal.result(timeout=60)
    assert [state.name for state in supervisor.states()] == ["sleeper"]


def test_a_killed_program_is_started_again(supervisor: Supervisor) -> None:
    """kill -9 of a child is repaired by supervisord."""
    supervisor.put(sleeper())
    pid = running_pid(supervisor, "sleeper")
    os.kill(pid, signal.SIGKILL)
    assert running_pid(supervisor, "sleeper", other_than=pid) != pid


def test_what_a_killed_run_left_in_its_group_is_killed_before_the_next(supervisor: Supervisor) -> None:
    """`kill_remains` ends an orphan that would hold the port."""
    supervisor.put(sleeper(command=(sys.executable, "-c", PARENT + SLEEPER), kill_remains=True))
    pid = running_pid(supervisor, "sleeper")
    child = wait_for(lambda: psutil.Process(pid).children(), "the child")[0]
    os.kill(pid, signal.SIGKILL)
    running_pid(supervisor, "sleeper", other_than=pid)
    wait_for(lambda: not child.is_running(), "the orphan's end")


def test_a_killed_supervisord_is_replaced_and_its_orphans_end(supervisor: Supervisor) -> None:
    """`start` after kill -9: no process runs twice, and every program is known again."""
    supervisor.put(sleeper())
    orphan = psutil.Process(running_pid(supervisor, "sleeper"))
    os.kill(int((supervisor.folder / "supervisord.pid").read_text()), signal.SIGKILL)
    wait_for(lambda: not supervisor.is_running(), "supervisord's end")
    supervisor.start()
    assert not orphan.is_running()
    assert running_pid(supervisor, "sleeper") != orphan.pid


def test_a_program_that_cannot_start_says_so(supervisor: Supervisor) -> None:
    """After its retries it is FATAL."""
    supervisor.put(sleeper(command=("/no/such/program",), start_retries=0))
    wait_for(lambda: (s := supervisor.state("sleeper")) and s.state == "FATAL", "FATAL")
    log_path = supervisor.layout.log_path("sleeper")
    wait_for(lambda: "no/such/program" in log_path.read_text(), "the program's name in the log")


def test_a_signal_reaches_the_program(supervisor: Supervisor) -> None:
    """And a program that is not there is no error."""
    supervisor.put(sleeper(autorestart=False))
    running_pid(supervisor, "sleeper")
    supervisor.signal("sleeper", "SIGINT")
    wait_for(lambda: (s := supervisor.state("sleeper")) and s.state == "EXITED", "the end")
    supervisor.signal("sleeper", signal.SIGINT)
    supervisor.signal("nobody", "SIGINT")


def test_stop_ends_detached_jobs_too(supervisor: Supervisor) -> None:
    """A process in a session of its own, found by the marker that it inherited."""
    detach = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {NAP!r}], start_new_session=True)"
    supervisor.put(sleeper(command=(sys.executable, "-c", detach), start_s=0, autorestart=False))
    [detached] = wait_for(lambda: napping(supervisor.layout), "the detached process")
    supervisor.stop()
    supervisor.stop()
    assert not detached.is_running()


def napping(layout: Layout) -> list[psutil.Process]:
    found = []
    for process in processes.owned(layout):
        with suppress(psutil.NoSuchProcess):
            if process.cmdline()[-1:] == [NAP]:
                found.append(process)
    return found


def test_a_long_home_gets_a_short_socket(tmp_path: Path) -> None:
    """The socket's path fits the kernel's limit, in a folder that is the owner's alone."""
    supervisor = Supervisor(tmp_path / ("long" * 40))
    supervisor.start()
    try:
        assert supervisor.is_running()
        assert len(os.fsencode(supervisor.socket_path)) <= 107
        assert Layout(tmp_path / ("long" * 40)).runtime_path.stat().st_mode & 0o777 == 0o700
    finally:
        supervisor.stop()
