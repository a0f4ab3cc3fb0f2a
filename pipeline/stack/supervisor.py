"""Long-running programs under `supervisord`: put, remove, look, signal. A thin client of its XML-RPC interface.

Writes, below `home/supervisor`: `supervisord.conf`, `conf.d/<name>.conf` and `programs/<name>.json` (so that a
supervisord that starts again knows every program), and `programs/<name>.pid`. Logs go to `home/logs/<name>.log`.
"""

import contextlib
import fcntl
import json
import signal as signals
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from pydantic import Field

from pipeline.contracts.base import Contract
from pipeline.errors import SpecError, TransientError
from pipeline.stack import loopback, processes
from pipeline.stack.layout import Layout

START_TIMEOUT_S = 30.0
POLL_S = 0.05
BAD_NAME, NOT_RUNNING, ALREADY_STARTED = 10, 70, 60
"""Fault codes of supervisord's interface."""


class Program(Contract):
    """One program to keep running."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,120}$")
    command: tuple[str, ...]
    environment: dict[str, str] = Field(default_factory=dict)
    """Added to supervisord's own."""
    directory: str | None = None
    stop_wait_s: int = 10
    """Between SIGTERM and SIGKILL."""
    start_s: int = 1
    """It counts as started when it has run for so long."""
    start_retries: int = 3
    """Failed starts in a row, each followed by a longer pause, before supervisord gives up (FATAL)."""
    priority: int = 500
    """Low ones start first and stop last."""
    user: str | None = None
    """Run as this OS user (only root can)."""
    autorestart: bool = True
    autostart: bool = True
    """Start it with supervisord itself, too."""
    kill_remains: bool = False
    """Before it starts anew, kill what its previous run left in its process group."""
    ready_url: str | None = None
    """It can be asked to stop once this answers 200; before, it is killed. None: it can be asked at any time."""


class ProgramState(Contract):
    """What supervisord says about a program."""

    name: str
    state: str
    """RUNNING, STARTING, BACKOFF, STOPPING, STOPPED, EXITED or FATAL."""
    pid: int | None
    log_path: Path
    started_at: int
    """Unix time of the last start, 0 if there was none."""
    exit_code: int | None
    """Of the last run, None while it runs."""
    reason: str = ""
    """Why it could not start, in supervisord's words."""


class Supervisor:
    """The supervisord of one home folder."""

    def __init__(self, home_path: Path) -> None:
        self.layout = Layout(Path(home_path))
        self.folder = self.layout.supervisor_path
        self.socket_path = self.layout.runtime_path / "supervisor.sock"
        self.interpreter_path = self.folder / "python"
        """Names supervisord's own interpreter: who puts a program may be in a container, where another one runs."""

    # --- supervisord itself ---

    def is_running(self) -> bool:
        try:
            state = self._call("supervisor.getState")
        except TransientError:
            return False
        return bool(state["statename"] == "RUNNING")

    def start(self) -> None:
        """Starts supervisord; what an earlier one left behind is ended first. Harmless if it runs.

        Raises:
            TransientError: it does not answer in time.
        """
        with self._lock():
            if self.is_running():
                return
            self.layout.create()
            processes.end(processes.owned(self.layout))
            (self.folder / "conf.d").mkdir(exist_ok=True)
            (self.folder / "programs").mkdir(exist_ok=True)
            (self.folder / "supervisord.conf").write_text(self._configuration())
            self.interpreter_path.write_text(sys.executable)
            self.socket_path.unlink(missing_ok=True)
            marked = ["env", f"{processes.MARKER}={self.layout.home_path}", sys.executable, "-m"]
            subprocess.run(
                [*marked, "supervisor.supervisord", "-c", str(self.folder / "supervisord.conf")],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                start_new_session=True,
                timeout=START_TIMEOUT_S,
            )
            self._await(self.is_running, f"supervisord did not start: see {self.layout.log_path('supervisord')}")

    def stop(self) -> None:
        """Stops every program, then supervisord, then whatever is left. Programs stay known for the next start."""
        with self._lock():
            if self.is_running():
                pid = self._call("supervisor.getPID")
                self._stop_by_priority()
                self._call("supervisor.shutdown")
                deadline = time.monotonic() + START_TIMEOUT_S
                while psutil.pid_exists(pid) and time.monotonic() < deadline:
                    time.sleep(POLL_S)
            processes.end(processes.owned(self.layout))
            self.socket_path.unlink(missing_ok=True)

    # --- programs ---

    def put(self, program: Program) -> None:
        """Keeps `program` running: starts it, or starts it anew if it changed. Harmless to repeat."""
        if program.user and subprocess.run(["which", "setpriv"], capture_output=True).returncode:
            raise SpecError(f"program {program.name} runs as user {program.user}, which needs setpriv (of util-linux)")
        with self._lock():
            described = json.dumps(program.model_dump(), indent=2) + "\n"
            path = self._program_path(program.name)
            if self.state(program.name) and (not path.exists() or path.read_text() != described):
                self._forget(program.name)
            if self.state(program.name) is None:
                path.touch(mode=0o600)
                path.write_text(described)
                self._conf_path(program.name).write_text(self._section(program, path))
                self._call("supervisor.reloadConfig")
                self._call("supervisor.addProcessGroup", program.name)
            state = self.state(program.name)
            if state and state.state not in ("RUNNING", "STARTING", "BACKOFF"):
                self._call("supervisor.startProcess", program.name, False, ignore=(ALREADY_STARTED,))

    def remove(self, name: str, *, at_once: bool = False) -> None:
        """Stops the program and forgets it; its log stays. Harmless to repeat.

        Nobody has to wait while it finishes what it has begun: other programs may be put and removed then.

        Args:
            at_once: kill it rather than ask it to end.
        """
        with self._lock():
            state = self.state(name)
            group = processes.group_of(state.pid) if state and state.pid else []
            leaving = [program for program in self._known() if program.name == name] if state else []
            self._ask_to_end(leaving, at_once=at_once)
        self._await_end(leaving)
        processes.end(group)
        with self._lock():
            if self.is_running():
                self._forget(name)
            for path in (self._conf_path(name), self._program_path(name), self._program_path(name).with_suffix(".pid")):
                path.unlink(missing_ok=True)
            if self.is_running():
                self._call("supervisor.reloadConfig")

    def state(self, name: str) -> ProgramState | None:
        """None if supervisord does not know the program, or does not run."""
        return next((state for state in self.states() if state.name == name), None)

    def states(self) -> list[ProgramState]:
        """Of every program, by name; empty if supervisord does not run."""
        try:
            found = self._call("supervisor.getAllProcessInfo")
        except TransientError:
            return []
        return [self._state(info) for info in sorted(found, key=lambda info: str(info["name"]))]

    def signal(self, name: str, signal: int | str) -> None:
        """Sends a signal to the program's first process. A program that does not run gets none."""
        number = signals.Signals[signal].value if isinstance(signal, str) else int(signal)
        self._call("supervisor.signalProcess", name, str(number), ignore=(BAD_NAME, NOT_RUNNING))

    def restart(self, name: str) -> None:
        """Stops the program, waits, and starts it."""
        with self._lock():
            self._call("supervisor.stopProcess", name, True, ignore=(NOT_RUNNING,))
            self._call("supervisor.startProcess", name, False, ignore=(ALREADY_STARTED,))

    # --- inside ---

    def _stop_by_priority(self) -> None:
        """Programs of one priority stop side by side: left to itself, supervisord waits for one after the other."""
        known = list(self._known())
        for priority in sorted({program.priority for program in known}, reverse=True):
            self._end([program for program in known if program.priority == priority])

    def _end(self, programs: list[Program]) -> None:
        """Asks all of them to stop, then waits for all."""
        self._ask_to_end(programs)
        self._await_end(programs)

    def _ask_to_end(self, programs: list[Program], *, at_once: bool = False) -> None:
        """Returns before they have; `at_once` kills them."""
        for program in programs:
            state = self.state(program.name)
            ready = program.ready_url is None or loopback.answers(program.ready_url)
            self._call("supervisor.stopProcess", program.name, False, ignore=(BAD_NAME, NOT_RUNNING))
            if state and state.pid and (at_once or not ready):
                processes.kill(processes.group_of(state.pid))

    def _await_end(self, programs: list[Program]) -> None:
        names = {program.name for program in programs}
        deadline = time.monotonic() + START_TIMEOUT_S + max((program.stop_wait_s for program in programs), default=0)
        while time.monotonic() < deadline and any(s.pid for s in self.states() if s.name in names):
            time.sleep(POLL_S)

    def _forget(self, name: str) -> None:
        state = self.state(name)
        if state is None:
            return
        group = processes.group_of(state.pid) if state.pid else []
        known = [program for program in self._known() if program.name == name]
        if known:
            self._end(known)
        self._call("supervisor.stopProcess", name, True, ignore=(BAD_NAME, NOT_RUNNING))
        self._call("supervisor.removeProcessGroup", name, ignore=(BAD_NAME,))
        processes.end(group)

    def _known(self) -> Iterator[Program]:
        for path in (self.folder / "programs").glob("*.json"):
            yield Program.model_validate_json(path.read_bytes())

    def _state(self, info: dict[str, Any]) -> ProgramState:
        running = info["pid"] != 0
        return ProgramState(
            name=info["name"],
            state=info["statename"],
            pid=info["pid"] or None,
            log_path=self.layout.log_path(info["name"]),
            started_at=info["start"],
            exit_code=None if running else info["exitstatus"],
            reason=info["spawnerr"],
        )

    def _call(self, method: str, *arguments: Any, ignore: tuple[int, ...] = ()) -> Any:
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, f"unix://{self.socket_path}")
        proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
        try:
            return getattr(proxy, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode in ignore:
                return None
            raise TransientError(f"supervisord refused {method}{arguments}: {fault.faultString}") from fault
        except (OSError, xmlrpc.client.ProtocolError) as error:
            raise TransientError(f"supervisord of {self.layout.home_path} does not answer: `./slipway up`") from error
        finally:
            transport.close()

    def _await(self, condition: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                raise TransientError(f"{complaint} (waited {START_TIMEOUT_S:.0f} s)")
            time.sleep(POLL_S)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One change at a time, whoever asks: the command line, a rollout, a test."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _program_path(self, name: str) -> Path:
        return self.folder / "programs" / f"{name}.json"

    def _conf_path(self, name: str) -> Path:
        return self.folder / "conf.d" / f"{name}.conf"

    def _configuration(self) -> str:
        return "\n".join(
            [
                "[supervisord]",
                f"logfile = {_escape(self.layout.log_path('supervisord'))}",
                "logfile_maxbytes = 5MB",
                "logfile_backups = 1",
                f"pidfile = {_escape(self.folder / 'supervisord.pid')}",
                f"childlogdir = {_escape(self.layout.logs_path)}",
                "umask = 077",
                "[unix_http_server]",
                f"file = {_escape(self.socket_path)}",
                "chmod = 0700",
                "[rpcinterface:supervisor]",
                "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
                "[include]",
                "files = conf.d/*.conf",
                "",
            ]
        )

    def _section(self, program: Program, path: Path) -> str:
        launcher = Path(__file__).with_name("launch.py")
        python = self.interpreter_path.read_text()
        command = " ".join(f'"{_escape(part)}"' for part in (python, "-P", launcher, path))
        return "\n".join(
            [
                f"[program:{program.name}]",
                f"command = {command}",
                f"autostart = {str(program.autostart).lower()}",
                f"autorestart = {str(program.autorestart).lower()}",
                f"startsecs = {program.start_s}",
                f"startretries = {program.start_retries}",
                f"stopwaitsecs = {program.stop_wait_s}",
                f"priority = {program.priority}",
                "killasgroup = true",
                "redirect_stderr = true",
                f"stdout_logfile = {_escape(self.layout.log_path(program.name))}",
                "stdout_logfile_maxbytes = 10MB",
                "stdout_logfile_backups = 3",
                "",
            ]
        )


def _escape(value: object) -> str:
    """For supervisord's configuration, which expands %(…)s and cuts a line at ` ;`."""
    text = str(value)
    if any(sign in text for sign in '"\n[*?') or " ;" in text or " #" in text:
        raise SpecError(f"the path {text!r} holds one of \" [ * ? ' ;' ' #' or a line break: choose another folder")
    return text.replace("%", "%%")
