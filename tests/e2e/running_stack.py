"""A running stack, and how to talk to it."""

import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from pipeline.stack import processes
from pipeline.stack.layout import Credentials, Layout
from pipeline.stack.supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[2]
UP_TIMEOUT_S = 600


@dataclass(frozen=True)
class RunningStack:
    """A stack, and how to talk to it."""

    home_path: Path

    @property
    def layout(self) -> Layout:
        return Layout(self.home_path)

    @property
    def supervisor(self) -> Supervisor:
        return Supervisor(self.home_path)

    @property
    def credentials(self) -> Credentials:
        return self.layout.credentials()

    @property
    def airflow_url(self) -> str:
        return f"http://127.0.0.1:{self.layout.ports().airflow}"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.layout.ports().mlflow}"

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.layout.ports().gateway}"

    def airflow(self) -> httpx.Client:
        """Airflow's REST API, logged in."""
        who = {"username": self.credentials.airflow_user, "password": self.credentials.airflow_password}
        token = httpx.post(f"{self.airflow_url}/auth/token", json=who, timeout=60).json()["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=f"{self.airflow_url}/api/v2", headers=headers, timeout=60)

    def slipway(self, *arguments: str, timeout_s: float = UP_TIMEOUT_S) -> "subprocess.CompletedProcess[str]":
        """Runs the command line in this stack's home; its exit code is the caller's to look at."""
        return subprocess.run(
            [str(ROOT / "slipway"), *arguments],
            cwd=ROOT,
            env={**os.environ, "SLIPWAY_HOME": str(self.home_path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def up(self) -> None:
        done = self.slipway("up")
        assert done.returncode == 0, done.stdout + done.stderr

    def down(self) -> None:
        done = self.slipway("down")
        assert done.returncode == 0, done.stdout + done.stderr
        assert [process.cmdline() for process in processes.owned(self.layout)] == []
        assert self.working_inside() == []

    def working_inside(self) -> list[list[str]]:
        """The command lines of all processes whose working folder is in the home, whoever they say they are."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if Path(process.cwd()).is_relative_to(self.home_path):
                    found.append(process.cmdline())
        return found
