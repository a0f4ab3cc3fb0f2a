"""The whole stack of docker-compose.yml, with the images built without a registry, under a project name of its own.

    with running(ComposeStack.prepare(folder)) as stack:
        stack.airflow().get("/dags")

Ports are free ones and secrets are new; nothing is left of it afterwards. Several tests share one: who breaks a part
puts it right again (`stack.up()`).
"""

import json
import os
import random
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from pipeline.fleet.doors import tls
from pipeline.settings import ROOT
from pipeline.stack import compose_init

FILES = (ROOT / "docker-compose.yml", ROOT / "infra" / "compose" / "registry-free.yml")
UP_TIMEOUT_S = 900
PORTS = ("airflow", "mlflow", "gateway", "prometheus", "grafana")


@dataclass(frozen=True)
class ComposeStack:
    """One project, and how to talk to it. `folder` holds its .env and its secrets."""

    folder: Path
    project: str
    ports: dict[str, int]
    files: tuple[Path, ...] = FILES

    @classmethod
    def prepare(cls, folder: Path) -> "ComposeStack":
        """Makes .env and the secrets as `slipway init` does, with free ports and an own network."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / ".env.example", folder)
        compose_init.initialise(folder)
        (folder / "secrets" / "hf_token").write_text(f"hf_{uuid.uuid4().hex}")
        stack = cls(folder, f"slipway-test-{uuid.uuid4().hex[:8]}", free_ports())
        subnet = f"10.213.{random.randrange(256)}"
        changed = {
            **{f"SLIPWAY_PORT_{part.upper()}": str(port) for part, port in stack.ports.items()},
            "SLIPWAY_FLEET_SUBNET": f"{subnet}.0/24",
            "SLIPWAY_FLEET_IP_RANGE": f"{subnet}.0/26",
            "SLIPWAY_SECRETS_FOLDER": str(folder / "secrets"),
            "SLIPWAY_S3_CAPACITY_GIB": "4",
            "SLIPWAY_TLS_FOLDER": str(folder / "tls"),
        }
        lines = (folder / ".env").read_text().splitlines()
        kept = [line for line in lines if line.partition("=")[0] not in changed]
        (folder / ".env").write_text("\n".join([*kept, *(f"{name}={text}" for name, text in changed.items())]) + "\n")
        return stack

    @property
    def tls_folder(self) -> Path:
        """Where the gateway looks for a certificate when it starts."""
        return self.folder / "tls"

    def url(self, part: str) -> str:
        with_tls = part == "gateway" and tls.certificate_in(self.tls_folder)
        return f"{'https' if with_tls else 'http'}://127.0.0.1:{self.ports[part]}"

    def secret(self, name: str) -> str:
        return (self.folder / "secrets" / name).read_text()

    @property
    def environment(self) -> dict[str, str]:
        """In which plain `docker compose` commands are about this stack, whatever the developer has set."""
        ours = ("SLIPWAY_", "COMPOSE_")
        return {
            **{name: text for name, text in os.environ.items() if not name.startswith(ours)},
            "COMPOSE_FILE": ":".join(map(str, self.files)),
            "COMPOSE_ENV_FILES": str(self.folder / ".env"),
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_PROGRESS": "plain",
        }

    def run(self, *command: str, text: str | None = None, timeout_s: float = UP_TIMEOUT_S) -> str:
        """What a command says that has to succeed."""
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, input=text, capture_output=True, text=True, timeout=timeout_s
        )
        assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def compose(self, *arguments: str, text: str | None = None) -> str:
        return self.run("docker", "compose", *arguments, text=text)

    def python(self, service: str, code: str) -> str:
        """Runs Python in a running service, signed in as that service is."""
        inside = ("python", "-m", "pipeline.stack.in_compose", "run", "python", "-c", code)
        return self.compose("exec", "-T", service, *inside)

    def up(self) -> float:
        """Brings everything up, or what is down; how many seconds it took until all was healthy.

        Raises:
            AssertionError: with the end of every unhealthy service's log.
        """
        began = time.monotonic()
        try:
            self.compose("up", "--detach", "--wait", "--wait-timeout", str(UP_TIMEOUT_S - 60))
        except (AssertionError, subprocess.TimeoutExpired) as error:
            raise AssertionError(f"{error}\n{self._what_is_wrong()}") from error
        return time.monotonic() - began

    def down(self) -> None:
        self.compose("down", "--volumes")

    def left_over(self) -> list[str]:
        """Containers, volumes and networks of the project, of whoever made them."""
        label = f"label=com.docker.compose.project={self.project}"
        kinds = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
        return [line for kind in kinds for line in self.run("docker", *kind, "-q", "--filter", label).splitlines()]

    def services(self) -> dict[str, bool]:
        """Every service that the compose files bring up, and whether it goes on for as long as the stack does."""
        found = json.loads(self.compose("config", "--format", "json"))["services"]
        return {name: service["restart"] != "no" for name, service in found.items()}

    def inspect(self) -> dict[str, dict[str, Any]]:
        """Every container of compose's own as Docker describes it, by service; not replicas and steps."""
        names = self.compose("ps", "--all", "--quiet", *self.services()).split()
        found: list[dict[str, Any]] = json.loads(self.run("docker", "inspect", *names))
        return {container["Config"]["Labels"]["com.docker.compose.service"]: container for container in found}

    def airflow(self) -> httpx.Client:
        """Airflow's REST API, logged in."""
        who = {"username": "admin", "password": self.secret("airflow_password")}
        token = httpx.post(f"{self.url('airflow')}/auth/token", json=who, timeout=60).json()["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=f"{self.url('airflow')}/api/v2", headers=headers, timeout=60)

    def mlflow(self) -> httpx.Client:
        """MLflow's REST API, signed in."""
        login = ("admin", self.secret("mlflow_admin_password"))
        return httpx.Client(base_url=self.url("mlflow"), auth=login, timeout=60)

    def gateway(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.secret('gateway_api_key')}"}
        return httpx.Client(base_url=self.url("gateway"), headers=headers, timeout=60, verify=False)

    def _what_is_wrong(self) -> str:
        states = self.run("docker", "compose", "ps", "--all", "--format", "{{.Service}} {{.Status}}").splitlines()
        wrong = [line.split()[0] for line in states if "(healthy)" not in line and "Exited (0)" not in line]
        logs = [self.compose("logs", "--no-color", "--tail", "30", service) for service in wrong]
        return "\n".join([*states, *logs])


@contextmanager
def running(stack: ComposeStack) -> Iterator[ComposeStack]:
    """The stack, healthy. Afterwards it is taken down, and nothing of it may be left."""
    try:
        stack.up()
        yield stack
    finally:
        stack.down()
    assert stack.left_over() == []


def free_ports() -> dict[str, int]:
    """One for each part, all held at once so that none is given twice."""
    with ExitStack() as held:
        servers = {part: held.enter_context(socket.create_server(("127.0.0.1", 0))) for part in PORTS}
        return {part: server.getsockname()[1] for part, server in servers.items()}
