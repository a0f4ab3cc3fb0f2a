"""Tells Prometheus of the fleet: `python -m pipeline.fleet.exporter`.

Answers GET /metrics at the home's port `metrics`, on the fleet's side of the stack alone. Reads the fleet's state and
asks the gateway for the health of replicas, each time it is asked, and keeps nothing. A damaged file is a figure of its
own, and the reason is in the log; a state that cannot be read at all is answered by 500 and the reason, so that
Prometheus's `up` says 0 rather than nothing.
"""

import socket
import sys
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pipeline import json_lines, settings
from pipeline.errors import SlipwayError
from pipeline.fleet import alive
from pipeline.fleet.analysis.live import FleetView, view_fleet
from pipeline.fleet.exposition import CONTENT_TYPE, Family, text_of
from pipeline.fleet.metrics import families
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


def figures(layout: Layout) -> tuple[FleetView, str]:
    """The fleet, and what Prometheus is told of it now."""
    began = time.monotonic()
    clusters = loopback.read_json(f"{layout.ports().url('gateway_admin')}/clusters", {"format": "json"})
    fleet = view_fleet(layout.home_path)
    found = families(fleet, clusters)
    seen = Family("slipway_program_seen_timestamp_seconds", "gauge", "When a keeper was seen last.")
    for name, moment in alive.last_seen(layout.fleet_path).items():
        seen.add(moment, program=name)
    took = Family("slipway_exporter_duration_seconds", "gauge", "How long collecting all of this took.")
    took.add(time.monotonic() - began)
    return fleet, text_of([*found, seen, took])


class Handler(BaseHTTPRequestHandler):
    """One request."""

    timeout = TIMEOUT_S
    server_version = "slipway"
    sys_version = ""

    def __init__(self, layout: Layout, said: set[str], *arguments: object) -> None:
        self.layout, self.said = layout, said
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != PATH:
            self._answer(404, "text/plain", f"there is only {PATH} here\n")
            return
        try:
            fleet, text = figures(self.layout)
        except (SlipwayError, OSError) as error:
            self._answer(500, "text/plain", f"{error}\n")
            self._say({f"{type(error).__name__}: {error}"})
        else:
            self._answer(200, CONTENT_TYPE, text)
            self._say({found.reason for found in fleet.damaged})

    def _say(self, wrong: set[str]) -> None:
        """What has gone wrong since the last request, into the log: once, not every five seconds."""
        for message in sorted(wrong - self.said):
            print(json_lines.line(NAME, message, level="error"), file=sys.stderr, flush=True)
        self.said.clear()
        self.said.update(wrong)

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
    with ThreadingHTTPServer((host, ports.metrics), partial(Handler, layout, set())) as server:
        server.daemon_threads = True
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
