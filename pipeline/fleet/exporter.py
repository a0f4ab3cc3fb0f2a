"""Tells Prometheus of the fleet: `python -m pipeline.fleet.exporter`.

Answers GET /metrics at the home's port `metrics`, on the fleet's side of the stack alone. Reads the fleet's state and
asks the gateway for the health of replicas, each time it is asked; keeps nothing but a count of rollouts that ended.
A state that cannot be read is answered by 500 and the reason, so that Prometheus's `up` says 0 rather than nothing.
"""

import socket
import sys
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pipeline import json_lines, settings
from pipeline.errors import SlipwayError
from pipeline.fleet.analysis.live import read_judgement
from pipeline.fleet.exposition import CONTENT_TYPE, Family, text_of
from pipeline.fleet.metrics import Tally, families
from pipeline.fleet.state import read_fleet
from pipeline.settings import ROOT
from pipeline.stack import loopback
from pipeline.stack.layout import Layout
from pipeline.stack.supervisor import Program

NAME = "metrics"
PATH = "/metrics"
TIMEOUT_S = 10.0
"""For a client to say what it wants."""


def program(layout: Layout) -> Program:
    """For the supervisor."""
    return Program(
        name=NAME,
        command=(sys.executable, "-m", "pipeline.fleet.exporter"),
        environment={"PYTHONPATH": str(ROOT), "SLIPWAY_HOME": str(layout.home_path)},
        directory=str(layout.fleet_path),
        start_retries=10,
        priority=150,
    )


def url(layout: Layout) -> str:
    """What Prometheus asks."""
    return f"{layout.ports().url(NAME)}{PATH}"


def figures(layout: Layout, tally: Tally) -> str:
    """What Prometheus is told now.

    Raises:
        SpecError: a model's state is damaged.
    """
    began = time.monotonic()
    clusters = loopback.read_json(f"{layout.ports().url('gateway_admin')}/clusters", {"format": "json"})
    fleet = read_fleet(layout.home_path)
    judgements = [seen for name in fleet if (seen := read_judgement(layout.home_path, name)) is not None]
    found = families(list(fleet.values()), tally, clusters, judgements)
    took = Family("slipway_exporter_duration_seconds", "gauge", "How long collecting all of this took.")
    took.add(time.monotonic() - began)
    return text_of([*found, took])


class Handler(BaseHTTPRequestHandler):
    """One request."""

    timeout = TIMEOUT_S
    server_version = "slipway"
    sys_version = ""

    def __init__(self, layout: Layout, tally: Tally, *arguments: object) -> None:
        self.layout, self.tally = layout, tally
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != PATH:
            self._answer(404, "text/plain", f"there is only {PATH} here\n")
            return
        try:
            text = figures(self.layout, self.tally)
        except (SlipwayError, OSError) as error:
            self._answer(500, "text/plain", f"{error}\n")
            said = json_lines.line(NAME, str(error), level="error", error=type(error).__name__)
            print(said, file=sys.stderr, flush=True)
        else:
            self._answer(200, CONTENT_TYPE, text)

    def _answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: a line every five seconds helps nobody."""


def main() -> int:
    layout = Layout(settings.load().home_path)
    ports = layout.ports()
    # In a container its own name is its address in the fleet's network; elsewhere it is on loopback.
    host = socket.gethostbyname(ports.host(NAME))
    with ThreadingHTTPServer((host, ports.metrics), partial(Handler, layout, Tally())) as server:
        server.daemon_threads = True
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
