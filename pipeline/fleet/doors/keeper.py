"""Keeps the gateway at what its clients may do: a program of its own, since some of that changes by itself.

    python -m pipeline.fleet.doors HOME

Twice a second it works out who may come in (keys pass their time of grace, budgets are used up and begin anew) and
which certificate the gateway shows, and brings the gateway to it when that has changed; and it starts a new access log
when the one that it counts tokens from has grown large. It keeps nothing in memory
that it could not lose: what it knows is in files, and at its start it brings the gateway to them.
"""

import sys
import time
from pathlib import Path

from pipeline import json_lines
from pipeline.errors import SlipwayError, TransientError
from pipeline.fleet import alive
from pipeline.fleet.doors import budgets, tls
from pipeline.fleet.doors.clients import Client
from pipeline.fleet.doors.keys import clock
from pipeline.fleet.gateway import Gateway
from pipeline.settings import ROOT
from pipeline.stack.layout import Layout
from pipeline.stack.supervisor import Program

PROGRAM = "doors"
PERIOD_S = 0.5
PAUSE_S = 10.0
"""Between two attempts to bring the gateway to what it did not take."""


def program(layout: Layout) -> Program:
    """For the supervisor."""
    return Program(
        name=PROGRAM,
        command=(sys.executable, "-m", "pipeline.fleet.doors", str(layout.home_path)),
        environment={"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        start_retries=10,
        priority=110,
    )


class Keeper:
    """Looks, compares, and brings the gateway to what should be."""

    def __init__(self, layout: Layout) -> None:
        self.gateway = Gateway(layout)
        self.brought: tuple[Client, ...] | None = None
        """What the gateway was brought to last; None: not known."""
        self.refused: tuple[tuple[Client, ...], float, TransientError] | None = None
        """What it did not take last, when that is tried again (monotonic), and why."""
        self.certificate: object = None
        """What the certificate's files looked like last."""
        self.said: dict[str, str] = {}
        """What was said last of each subject."""

    def look(self) -> None:
        """One round. What fails is said once, and tried again in the next one."""
        for subject, look in (
            ("certificate", self._look_at_certificate),
            ("tokens", self._count_tokens),
            ("clients", self._look_at_clients),
        ):
            try:
                look()
                self._say(subject, "")
            except SlipwayError as error:
                self._say(subject, str(error))

    def _look_at_certificate(self) -> None:
        """A new one is shown once it and its key fit each other; until then the one before."""
        chosen = tls.certificate_of(self.gateway.layout)
        if chosen is None or tls.stamp(chosen) == self.certificate:
            return
        found = tls.stamp(chosen)
        self.gateway.write_certificate(tls.read_pair(chosen))
        self.certificate = found

    def _count_tokens(self) -> None:
        budgets.count(self.gateway.layout, self.gateway.access_log_path, clock())
        self.gateway.rotate_access_log()

    def _look_at_clients(self) -> None:
        wanted = self.gateway.clients()
        if wanted == self.brought:
            return
        if self.refused and self.refused[0] == wanted and time.monotonic() < self.refused[1]:
            raise self.refused[2]
        if self.gateway.uptime_s() is None:
            # Without this, tokens would not be counted and certificates not be brought while it is waited for.
            raise TransientError("the gateway does not answer; it reads the files itself when it starts")
        try:
            self.gateway.apply()
        except TransientError as error:
            self.refused = (wanted, time.monotonic() + PAUSE_S, error)
            raise
        self.brought = wanted

    def run(self) -> None:
        """Until the process is ended."""
        while True:
            alive.touch(self.gateway.layout.fleet_path, PROGRAM)
            self.look()
            time.sleep(PERIOD_S)

    def _say(self, subject: str, what: str) -> None:
        if what and what != self.said.get(subject):
            print(json_lines.line("doors", what, level="error", subject=subject), file=sys.stderr)
        self.said[subject] = what


def main() -> int:
    Keeper(Layout(Path(sys.argv[1]))).run()
    return 0
