"""Keeps the gateway at what its clients may do: a program of its own, since some of that changes by itself.

    python -m pipeline.fleet.doors HOME

Several times a second it works out who may come in (keys pass their time of grace, budgets are used up and begin
anew) and brings the gateway to it when that has changed. It keeps nothing in memory that it could not lose: what it
knows is in files, and at its start it brings the gateway to them.
"""

import sys
import time
from pathlib import Path

from pipeline.errors import SlipwayError, TransientError
from pipeline.fleet.doors.clients import Client
from pipeline.fleet.gateway import Gateway
from pipeline.settings import ROOT
from pipeline.stack.layout import Layout
from pipeline.stack.supervisor import Program

PROGRAM = "doors"
PERIOD_S = 0.5


def program(layout: Layout) -> Program:
    """For the supervisor."""
    return Program(
        name=PROGRAM,
        command=(sys.executable, "-m", "pipeline.fleet.doors", str(layout.home_path)),
        environment={"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        start_retries=10,
        priority=110,
    )


def alive_path(layout: Layout) -> Path:
    """Touched at each round."""
    return layout.fleet_path / "doors" / "alive"


class Keeper:
    """Looks, compares, and brings the gateway to what should be."""

    def __init__(self, layout: Layout) -> None:
        self.gateway = Gateway(layout)
        alive_path(layout).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.brought: tuple[Client, ...] | None = None
        """What the gateway was brought to last; None: not known."""
        self.said = ""

    def look(self) -> None:
        """One round."""
        wanted = self.gateway.clients()
        if wanted == self.brought:
            return
        if self.gateway.uptime_s() is None:
            # Without this, every round would hold the lock for as long as a gateway may take to answer.
            raise TransientError("the gateway does not answer; it reads the files itself when it starts")
        with self.gateway.files.lock():
            wanted = self.gateway.clients()
            self.gateway.apply()
        self.brought = wanted

    def run(self) -> None:
        """Until the process is ended. What fails is said once, and tried again."""
        while True:
            alive_path(self.gateway.layout).touch()
            try:
                self.look()
                self._say("")
            except SlipwayError as error:
                self._say(str(error))
            time.sleep(PERIOD_S)

    def _say(self, what: str) -> None:
        if what and what != self.said:
            print(what, file=sys.stderr)
        self.said = what


def main() -> int:
    Keeper(Layout(Path(sys.argv[1]))).run()
    return 0
