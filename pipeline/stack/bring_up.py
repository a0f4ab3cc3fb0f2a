"""Brings the whole stack up and down: `up`, `down`, and what is up.

`up` is written so that every part of it is harmless to repeat: it is also the repair after anything was killed.
"""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from pipeline.errors import SpecError, TransientError
from pipeline.recipe_files import known_recipes
from pipeline.settings import Settings
from pipeline.signing import keys
from pipeline.stack import (
    airflow_part,
    autoscaler_part,
    jobs_part,
    loopback,
    mlflow_part,
    postgres_part,
    processes,
)
from pipeline.stack.layout import Layout, Ports
from pipeline.stack.schedules import write_schedules
from pipeline.stack.supervisor import Program, ProgramState, Supervisor

READY_TIMEOUT_S = 420.0
"""Airflow on two cores that are busy with other things takes minutes; on idle ones half of one."""
POLL_S = 0.4
LOG_TAIL_LINES = 20
GATEWAY = "gateway"
PORT_OWNERS = {
    "airflow": "airflow-api-server",
    "mlflow": mlflow_part.NAME,
    "gateway": GATEWAY,
    "gateway_admin": GATEWAY,
    "metrics": "metrics",
}
"""Port to the supervised program that listens on it."""

Say = Callable[[str, str], None]
"""Called with a part's name and its new state, as the stack comes up."""


@dataclass(frozen=True)
class Stack:
    """One home's stack."""

    layout: Layout
    settings: Settings

    @property
    def supervisor(self) -> Supervisor:
        return Supervisor(self.layout.home_path)

    def up(
        self,
        say: Say,
        ports: dict[str, int] | None = None,
        backend: str | None = None,
        *,
        choose: Callable[[Layout], None] = lambda layout: None,
    ) -> None:
        """Starts what does not run and waits until every part answers.

        Args:
            ports: part to port, for those that the caller wants; they are kept.
            backend: where steps are to run, process or docker; it is kept.
            choose: keeps what else the user decided, once there is a home and before anything starts.

        Raises:
            SpecError: a port is taken; nothing was started.
            TransientError: a part does not answer in time; the message names it and the end of its log.
        """
        self.layout.create()
        wanted = {**self.settings.ports, **(ports or {})}
        check_ports(self.layout.choose_ports(wanted), self._own_pids())
        self.layout.choose_regions(self.settings.regions)
        self.layout.ensure_credentials()
        keys.ensure(self.layout)
        choose(self.layout)
        if jobs_part.choose(self.layout, self.settings, backend).backend == "docker":
            say("steps", "run as containers")
        self.supervisor.start()
        say("supervisor", "ready")
        postgres_part.initialise(self.layout)
        self._put(postgres_part.program(self.layout))
        self._wait(postgres_part.NAME, lambda: postgres_part.is_ready(self.layout))
        postgres_part.create_databases(self.layout)
        say(postgres_part.NAME, "ready")
        parts = (self._up_gateway, self._up_mlflow, self._up_airflow)
        with ThreadPoolExecutor(len(parts)) as pool:
            for done in [pool.submit(part, say) for part in parts]:
                done.result()

    def down(self) -> int:
        """Ends every process and container of this home, detached jobs and replicas too.

        Returns:
            How many there were.
        """
        if not self.layout.home_path.exists():
            return 0
        count = len(processes.owned(self.layout))
        self.supervisor.stop()
        return count + jobs_part.end_containers(self.layout, self.settings)

    def states(self) -> list[ProgramState]:
        return self.supervisor.states()

    def _up_gateway(self, say: Say) -> None:
        from pipeline.fleet import epochs, exporter, gateway, replica_guard
        from pipeline.fleet.doors import keeper

        say(GATEWAY, "starting")
        self._put(gateway.program(self.layout))
        self._wait(GATEWAY, lambda: epochs.runs_as_wanted(self.layout.gateway_path))
        say(GATEWAY, "ready")
        keepers = (
            replica_guard.program(self.layout),
            keeper.program(self.layout),
            autoscaler_part.program(self.layout, self.settings),
        )
        for program in keepers:
            self._put(program)
        for program in keepers:
            self._wait(program.name, partial(self._runs, program.name))
            say(program.name, "ready")
        self._put(exporter.program(self.layout))
        self._wait(exporter.NAME, lambda: loopback.answers(exporter.url(self.layout)))
        say(exporter.NAME, "ready")

    def _up_mlflow(self, say: Say) -> None:
        say(mlflow_part.NAME, "starting")
        self._put(mlflow_part.program(self.layout))
        self._wait(mlflow_part.NAME, lambda: mlflow_part.is_healthy(self.layout))
        say(mlflow_part.NAME, "ready")

    def _up_airflow(self, say: Say) -> None:
        say("airflow", "migrating its database")
        airflow_part.write_passwords(self.layout)
        airflow_part.migrate(self.layout, self.settings)
        scheduled = write_schedules(self.layout.home_path, known_recipes(self.layout.home_path).values())
        if scheduled:
            say("schedules", f"{len(scheduled)} by the clock: {', '.join(path.stem for path in scheduled)}")
        say("airflow", "starting")
        for program in airflow_part.programs(self.layout, self.settings):
            self._put(program)
        left = list(airflow_part.PROGRAMS)

        def settled() -> bool:
            still = airflow_part.unhealthy(self.layout, self.supervisor)
            for name in set(left) - set(still):
                say(name, "ready")
            left[:] = still
            return not still

        self._wait(lambda: left[0], settled)
        say("airflow", "ready")

    def _runs(self, name: str) -> bool:
        state = self.supervisor.state(name)
        return state is not None and state.state == "RUNNING"

    def _put(self, program: Program) -> None:
        self.supervisor.put(program)

    def _wait(self, name: str | Callable[[], str], is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not is_ready():
            part = name if isinstance(name, str) else name()
            state = self.supervisor.state(part)
            if state is None or state.state == "FATAL" or time.monotonic() > deadline:
                why = "is not known to supervisord" if state is None else f"is {state.state}"
                raise TransientError(f"{part} {why} and does not answer. {log_tail(self.layout.log_path(part))}")
            time.sleep(POLL_S)

    def _own_pids(self) -> set[int]:
        return {process.pid for process in processes.owned(self.layout)}


def check_ports(ports: Ports, own_pids: set[int]) -> None:
    """Refuses ports that somebody else holds.

    Raises:
        SpecError: names each port, who holds it, and what to do.
    """
    taken = []
    for name, port in ports.numbers().items():
        if _is_free(port):
            continue
        owner = processes.listener(port)
        if owner is None or owner.pid not in own_pids:
            taken.append(f"port {port} ({name}) is taken by {_described(owner)}")
    if taken:
        raise SpecError(
            "; ".join(taken) + ". Stop that program, or choose another port: `./slipway up --port NAME=NUMBER`"
            " (a free one is taken by itself where none was ever set)"
        )


def log_tail(path: Path) -> str:
    """The end of a log, ready to stand in a message."""
    if not path.exists():
        return f"Its log {path} was never written."
    lines = path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return "\n".join([f"The end of its log {path}:", *(f"  {line}" for line in lines)])


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _described(owner: psutil.Process | None) -> str:
    if owner is None:
        return "another program (of another user, so it cannot be named)"
    return f"process {owner.pid} ({owner.name()}, of {owner.username()})"
