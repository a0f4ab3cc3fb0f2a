"""A running stack, and how to talk to it."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

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
