"""Kills the services of a stack in docker compose, and notes what that cost: the drill of the fault tests.

Two ways to die. A *crash* is kill -9 of a container's first process, as a fault of the program or the kernel's want of
memory would have it: the engine starts the container again. `docker compose kill` is a person's word, which the engine
respects: the container stays down until somebody starts it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from pipeline import settings
from pipeline.images import image_name
from tests.e2e.clients import Load
from tests.integration.docker.compose_release import wait_until
from tests.integration.docker.compose_stack import ComposeStack

HEALTHY_LIMIT_S = 240.0

Kill = Callable[[ComposeStack, str], None]


def crash(stack: ComposeStack, service: str) -> None:
    """From outside of the container: within it, its first process cannot be killed."""
    pid = stack.run("docker", "inspect", "--format", "{{.State.Pid}}", container_of(stack, service)).strip()
    limits = ("--pid=host", "--network=none", "--user=0", "--cap-drop=ALL", "--cap-add=KILL")
    control = image_name("control", settings.load({}))
    stack.run("docker", "run", "--rm", *limits, control, "python", "-c", f"import os; os.kill({pid}, 9)")


def kill_and_start(stack: ComposeStack, service: str) -> None:
    """The engine leaves it down, so we start it, and nothing besides."""
    stack.compose("kill", service)
    assert state_of(stack, container_of(stack, service)).status == "exited"
    stack.compose("start", service)


@dataclass(frozen=True)
class Death:
    """One service's."""

    service: str
    during: str
    kind: str
    """Whether it crashed or was killed by a person."""
    began: float
    """Just before, in seconds since the epoch."""
    died_at: float
    """By the engine."""
    healthy_s: float
    """From then until its health check passed again; it looks every three seconds."""


@dataclass
class Drill:
    """All deaths so far, while the clients of `load` go on asking."""

    stack: ComposeStack
    load: Load
    deaths: list[Death] = field(default_factory=list)

    def strike(self, service: str, kill: Kill, during: str) -> None:
        """Kills a service and waits until it is healthy again, and clients have had answers since."""
        container = container_of(self.stack, service)
        before = state_of(self.stack, container)
        began = time.time()
        kill(self.stack, service)

        def is_back() -> bool:
            now = state_of(self.stack, container)
            return now.started_at != before.started_at and (now.status, now.health) == ("running", "healthy")

        wait_until(is_back, f"{service} is healthy again", HEALTHY_LIMIT_S)
        died_at = datetime.fromisoformat(state_of(self.stack, container).finished_at).timestamp()
        healthy_s = time.time() - died_at
        answered = self.load.answers.total()
        wait_until(lambda: self.load.answers.total() > answered + 1, "answers for the clients", HEALTHY_LIMIT_S)
        self.deaths.append(Death(service, during, kill.__name__, began, died_at, healthy_s))

    def failures(self, death: Death) -> list[float]:
        """When clients' requests failed from this death to the next."""
        return [moment for moment in self.load.failed_at if death.began <= moment < self._next(death)]

    def slowest_s(self, death: Death) -> float:
        """The longest that a client waited for an answer from this death to the next."""
        waits = [took_s for moment, took_s in self.load.took_s if death.began <= moment < self._next(death)]
        return max(waits, default=0.0)

    def table(self) -> str:
        """A line for each death."""
        head = f"{'service':23}{'during':9}{'how':16}{'healthy after':>14}{'failed':>8}{'until':>9}{'slowest':>9}"
        return "\n".join([head, *map(self._line, self.deaths)])

    def _line(self, death: Death) -> str:
        failed = self.failures(death)
        until_s = max(failed) - death.died_at if failed else 0.0
        return (
            f"{death.service:23}{death.during:9}{death.kind:16}{death.healthy_s:12.1f} s{len(failed):8}{until_s:7.1f} s"
            f"{self.slowest_s(death):7.1f} s"
        )

    def _next(self, death: Death) -> float:
        """When the next service was killed."""
        return min((other.began for other in self.deaths if other.began > death.began), default=float("inf"))


def container_of(stack: ComposeStack, service: str) -> str:
    return stack.compose("ps", "--all", "--quiet", service).strip()


@dataclass(frozen=True)
class State:
    """A container's, as the engine tells it."""

    status: str
    started_at: str
    finished_at: str
    health: str


def state_of(stack: ComposeStack, container: str) -> State:
    asked = " ".join(f"{{{{.State.{field}}}}}" for field in ("Status", "StartedAt", "FinishedAt", "Health.Status"))
    return State(*stack.run("docker", "inspect", "--format", asked, container).split())
