"""Keeps Envoy running, and replaces it by a newer one while it goes on: `python -m pipeline.fleet.envoy_keeper FOLDER`.

Reads `FOLDER/envoy.json`, which says what should run, and `FOLDER/bootstrap.json` for where Envoy's own interface is.
When envoy.json changes, the next epoch starts (Envoy's hot restart,
https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/operations/hot_restart): it takes over the open
sockets, and the one before finishes what it has begun and ends. Writes `FOLDER/epoch.json`, what runs. A supervised
program; killed with -9, its next start finds the running Envoy there and goes on with it.
"""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from pipeline import json_lines
from pipeline.errors import SlipwayError
from pipeline.fleet.epochs import (
    POLL_S,
    STANDING_FILE,
    Epoch,
    Process,
    Standing,
    Wanted,
    alive,
    read_standing,
    read_wanted,
    server_info,
)
from pipeline.whole_files import write_atomically

BASE_ID_FILE = "base_id"
LIVE_TIMEOUT_S = 60.0
SETTLED_S = 5.0
"""One that dies younger than this is left to the supervisor, which waits longer after each such start."""
END_WAIT_S = 8.0
DETACH = 'p=$$; (exec >&2; while [ -d "/proc/$p" ]; do sleep 0.01; done; exec "$@") & echo $!'
"""Starts a program that nobody is the parent of, once that is so: Envoy ends itself when its parent dies."""


class Keeper:
    """The supervised program."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.standing = read_standing(folder)
        self.over = threading.Event()

    def run(self) -> int:
        """Until it is told to end (0), or Envoy cannot be kept up (1)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.over.set())
        self._take_up()
        while not self.over.wait(POLL_S):
            if not self._look():
                self._end_all()
                return 1
        self._end_all()
        return 0

    def _take_up(self) -> None:
        """Goes on with what an earlier run of this program left behind, whenever it was killed."""
        self._adopt()
        standing = self.standing
        known = [epoch.process for epoch in (standing.current, standing.coming) if epoch]
        for stranger in envoys(self.folder, without=[*known, *([standing.draining] if standing.draining else [])]):
            self._end(stranger)
        current = standing.current
        if standing.coming is None and current and alive(current.process):
            say(f"Envoy (process {current.process.pid}) runs already")
            if not self._await_live(current.process, current.number):
                self._end(current.process)

    def _adopt(self) -> None:
        """Goes on with an epoch that was just being started: it may have taken over already, so it may not be ended."""
        current, intended = self.standing.current, self.standing.intended
        if not intended or current is None:
            return
        begun = [found for found in envoys(self.folder) if _number_of(found) == current.number + 1]
        coming = None
        if begun:
            process = max(begun, key=lambda found: found.created)
            say(f"epoch {current.number + 1} (process {process.pid}) had been started")
            coming = _epoch(current, process, intended)
        self._keep(self.standing.model_copy(update={"coming": coming, "intended": ""}))

    def _look(self) -> bool:
        """One look at what runs and what should.

        Returns:
            Whether it is worth going on.
        """
        wanted = read_wanted(self.folder)
        if wanted is None:
            return True
        if self.standing.draining and not alive(self.standing.draining):
            self._keep(self.standing.model_copy(update={"draining": None}))
        current, coming = self.standing.current, self.standing.coming
        if coming:
            return self._settle(coming, wanted)
        if current is None or not alive(current.process):
            age_s = time.time() - current.began_at if current else SETTLED_S
            if current and 0 <= age_s < SETTLED_S:
                say(f"Envoy (process {current.process.pid}) died after {age_s:.1f} s")
                self._keep(Standing())
                return False
            return self._start_anew(wanted)
        if self.standing.draining is None and wanted.digest not in (current.wanted, self.standing.refused):
            return self._succeed(current, wanted)
        return True

    def _start_anew(self, wanted: Wanted) -> bool:
        """An Envoy that takes over from nobody."""
        self._end(self.standing.draining)
        base_id_path = self.folder / BASE_ID_FILE
        base_id_path.unlink(missing_ok=True)
        options = ("--use-dynamic-base-id", "--base-id-path", str(base_id_path), "--restart-epoch", "0")
        compatible = hot_restart_version(wanted)
        process = self._spawn(wanted, options)
        if not self._await_live(process, 0):
            say("Envoy did not come up")
            self._end(process)
            return False
        first = Epoch(
            number=0,
            base_id=int(base_id_path.read_text()),
            process=process,
            wanted=wanted.digest,
            compatible=compatible,
            began_at=time.time(),
        )
        self._keep(Standing(current=first))
        return True

    def _succeed(self, current: Epoch, wanted: Wanted) -> bool:
        """The next epoch, which takes over from `current`; where it cannot, `current` goes on."""
        if hot_restart_version(wanted) != current.compatible:
            say("this build of Envoy cannot take over from the one that runs: starting it afresh")
            self._end(current.process)
            return self._start_anew(wanted)
        number = current.number + 1
        self._keep(self.standing.model_copy(update={"intended": wanted.digest}))
        process = self._spawn(wanted, ("--base-id", str(current.base_id), "--restart-epoch", str(number)))
        coming = _epoch(current, process, wanted.digest)
        self._keep(self.standing.model_copy(update={"coming": coming, "intended": ""}))
        return self._settle(coming, wanted)

    def _settle(self, coming: Epoch, wanted: Wanted) -> bool:
        """Makes `coming` the current one when it is live; where it does not come up, the one before goes on."""
        current = self.standing.current
        if self._await_live(coming.process, coming.number):
            self._keep(Standing(current=coming, draining=current.process if current else None))
            say(f"epoch {coming.number} (process {coming.process.pid}) has taken over")
            return True
        if self.over.is_set():
            return True
        self._end(coming.process)
        reason = f"epoch {coming.number} ended or was not live in {LIVE_TIMEOUT_S:g} s; see logs/gateway.log"
        say(reason)
        self._keep(Standing(current=current, refused=coming.wanted, reason=reason))
        if current and self._is_live(current.number):
            return True
        say("the epoch before had handed over already: starting afresh")
        self._end(current.process if current else None)
        return self._start_anew(wanted)

    def _spawn(self, wanted: Wanted, options: tuple[str, ...]) -> Process:
        drain_s = str(wanted.drain_s)
        times = ("--drain-strategy", "immediate", "--drain-time-s", drain_s, "--parent-shutdown-time-s", drain_s)
        command = ("sh", "-c", DETACH, "sh", *wanted.command, *options, *times)
        done = subprocess.run(command, cwd=self.folder, stdout=subprocess.PIPE, text=True, check=True)
        pid = int(done.stdout)
        return Process(pid=pid, created=psutil.Process(pid).create_time())

    def _await_live(self, process: Process, number: int) -> bool:
        deadline = time.monotonic() + LIVE_TIMEOUT_S
        while time.monotonic() < deadline and not self.over.wait(POLL_S):
            if not alive(process):
                return False
            if self._is_live(number):
                return True
        return False

    def _is_live(self, number: int) -> bool:
        """Whether the Envoy that answers at its own interface is epoch `number` and takes requests."""
        found = server_info(self.folder)
        return bool(found and found["state"] == "LIVE" and found["command_line_options"]["restart_epoch"] == number)

    def _keep(self, standing: Standing) -> None:
        self.standing = standing
        write_atomically(self.folder / STANDING_FILE, standing.model_dump_json(indent=1))

    def _end(self, process: Process | None) -> None:
        if process is None or not alive(process):
            return
        found = psutil.Process(process.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            found.terminate()
        if not _wait(lambda: not alive(process), END_WAIT_S):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.kill()
        _wait(lambda: not alive(process), END_WAIT_S)

    def _end_all(self) -> None:
        for process in sorted(envoys(self.folder), key=lambda found: -found.created):
            self._end(process)


def envoys(folder: Path, without: Iterable[Process] = ()) -> list[Process]:
    """Every Envoy that runs with this folder's bootstrap.json."""
    bootstrap, known = str(folder / "bootstrap.json"), {process.pid for process in without}
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "create_time"]):
        about = process.info
        words = about["cmdline"] or ()
        if bootstrap in words and "--restart-epoch" in words and about["pid"] not in known:
            found.append(Process(pid=about["pid"], created=about["create_time"]))
    return found


def _epoch(before: Epoch, process: Process, wanted: str) -> Epoch:
    """The one after `before`, which can take over from it."""
    return before.model_copy(
        update={"number": before.number + 1, "process": process, "wanted": wanted, "began_at": time.time()}
    )


def _number_of(process: Process) -> int | None:
    """Which epoch it was started as; None if it has ended meanwhile."""
    try:
        words = psutil.Process(process.pid).cmdline()
    except psutil.NoSuchProcess:
        return None
    return int(words[words.index("--restart-epoch") + 1]) if "--restart-epoch" in words else None


def hot_restart_version(wanted: Wanted) -> str:
    """Which others this build of Envoy can take over from."""
    command = [wanted.command[0], "--hot-restart-version"]
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, timeout=30)
    return said.stdout.strip()


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S / 2)
    return True


def say(message: str) -> None:
    """Into the program's log."""
    print(json_lines.line("gateway", message), flush=True)


if __name__ == "__main__":
    try:
        sys.exit(Keeper(Path(sys.argv[1])).run())
    except SlipwayError as error:
        sys.exit(f"gateway: {error}")
