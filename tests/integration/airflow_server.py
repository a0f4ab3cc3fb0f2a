"""A real Airflow on a free port of the loopback: API server, scheduler, DAG processor and triggerer, each a process
that can be killed and started again. SQLite, and all state in one temporary folder.

    with AirflowServer(folder, dags_path=…, variables={…}) as airflow:
        run_id = airflow.trigger("release", {"recipe": "demo"})
        airflow.wait_for_run("release", run_id)
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from pipeline.settings import ROOT

START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 20.0
LOCKED_TIMEOUT_S = 60.0
"""Airflow's processes lock each other out of SQLite; what a request gets then is HTTP 500 with these words:"""
LOCKED = "Database error"
PASSWORD = "only-for-tests"
ADMIN = {"admin": "admin"}
"""User to role."""
PARTS = ("api-server", "scheduler", "dag-processor", "triggerer")
ENDED = ("success", "failed", "skipped", "upstream_failed", "removed")


class AirflowServer:
    """One Airflow; its API answers as the user admin."""

    def __init__(
        self,
        folder: Path,
        *,
        dags_path: Path,
        variables: Mapping[str, str],
        parts: Sequence[str] = PARTS,
        users: Mapping[str, str] = ADMIN,
    ) -> None:
        self.folder = folder
        self.parts = parts
        self.users = users
        self.port = _free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {**os.environ, **self._settings(dags_path), **variables}
        self._client: httpx.Client | None = None

    def __enter__(self) -> "AirflowServer":
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "passwords.json").write_text(json.dumps({user: PASSWORD for user in self.users}))
        self._airflow("db", "migrate")
        for part in self.parts:
            self.start(part)
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for part in list(self.processes):
            self._signal(part, signal.SIGTERM)
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
        for part in list(self.processes):
            self.kill(part)
        if self._client:
            self._client.close()

    def start(self, part: str) -> None:
        arguments = (part, "--port", str(self.port), "--workers", "1") if part == "api-server" else (part,)
        with (self.folder / f"{part}.log").open("ab") as log:
            self.processes[part] = subprocess.Popen(
                [sys.executable, "-m", "airflow", *arguments],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, part: str) -> None:
        """kill -9 of the part and of everything that it started in its own process group."""
        process = self.processes.pop(part)
        self._signal_process(process, signal.SIGKILL)
        process.wait()

    def api(self, method: str, path: str, **options: Any) -> httpx.Response:
        """A request to /api/v2; made again where SQLite was locked."""
        if self._client is None:
            answer = httpx.post(f"{self.uri}/auth/token", json={"username": "admin", "password": PASSWORD})
            answer.raise_for_status()
            headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
            self._client = httpx.Client(base_url=f"{self.uri}/api/v2", headers=headers, timeout=60)
        until = time.monotonic() + LOCKED_TIMEOUT_S
        while True:
            answer = self._client.request(method, path, **options)
            if answer.status_code != 500 or LOCKED not in answer.text or time.monotonic() > until:
                return answer
            time.sleep(0.2)

    def get(self, path: str, **query: Any) -> Any:
        return self.api("GET", path, params=query).raise_for_status().json()

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        run_id = f"test-{uuid.uuid4().hex[:8]}"
        self.wait(f"DAG {dag_id} is known", lambda: self.api("GET", f"/dags/{dag_id}").status_code == 200)
        body = {"logical_date": None, "dag_run_id": run_id, "conf": dict(conf or {})}
        answer = self.api("POST", f"/dags/{dag_id}/dagRuns", json=body)
        assert answer.status_code == 200, answer.text
        return run_id

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get(f"/dags/{dag_id}/dagRuns", order_by="run_after")["dag_runs"]
        return found

    def task(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}")
        return found

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        tasks = self.get(f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"]
        return {task["task_id"]: task["state"] for task in tasks}

    def wait_for_run(self, dag_id: str, run_id: str, timeout_s: float = 300) -> str:
        state = ""

        def ended() -> bool:
            nonlocal state
            state = str(self.get(f"/dags/{dag_id}/dagRuns/{run_id}")["state"])
            return state in ENDED

        self.wait(f"run {run_id} of {dag_id} ends", ended, timeout_s)
        return state

    def wait(self, what: str, condition: Callable[[], bool], timeout_s: float = 240) -> None:
        """An error of Airflow, or no answer, means "not yet"."""
        until = time.monotonic() + timeout_s
        answer = ""
        while True:
            try:
                if condition():
                    return
            except httpx.HTTPError as error:
                answer = f"; the last error was {error!r}"
            assert time.monotonic() < until, f"waited {timeout_s:.0f} s in vain: {what}{answer}; logs in {self.folder}"
            time.sleep(0.2)

    def log(self, dag_id: str, run_id: str, task_id: str, attempt: int = 1) -> str:
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{attempt}"
        content = self.get(path, full_content=True)["content"]
        return "\n".join(str(line.get("event", line)) if isinstance(line, dict) else str(line) for line in content)

    def _wait_until_ready(self) -> None:
        """Healthy, and every DAG file known."""
        num_dags = len(list(Path(self.environment["AIRFLOW__CORE__DAGS_FOLDER"]).glob("*.py")))

        def ready() -> bool:
            for part, process in self.processes.items():
                assert process.poll() is None, f"{part} ended at start:\n{self._tail(part)}"
            try:
                health = httpx.get(f"{self.uri}/api/v2/monitor/health", timeout=5).json()
                loaded = "dag-processor" not in self.parts or self.get("/dags")["total_entries"] >= num_dags
            except (httpx.HTTPError, ValueError):
                return False
            wanted = ["metadatabase", *(name for name in ("scheduler", "triggerer") if name in self.parts)]
            return loaded and all(health[name]["status"] == "healthy" for name in wanted)

        self.wait("Airflow is healthy and knows its DAGs", ready, START_TIMEOUT_S)

    def _tail(self, part: str) -> str:
        return (self.folder / f"{part}.log").read_text(errors="replace")[-3000:]

    def _airflow(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]

    def _signal(self, part: str, number: signal.Signals) -> None:
        self._signal_process(self.processes[part], number)

    @staticmethod
    def _signal_process(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return

    def _settings(self, dags_path: Path) -> dict[str, str]:
        options = {
            "core.executor": "LocalExecutor",
            "core.parallelism": "8",
            "core.dags_folder": str(dags_path),
            "core.plugins_folder": str(ROOT / "plugins"),
            "core.load_examples": "False",
            "core.dags_are_paused_at_creation": "False",
            "core.simple_auth_manager_users": ",".join(f"{user}:{role}" for user, role in self.users.items()),
            "core.simple_auth_manager_passwords_file": str(self.folder / "passwords.json"),
            "core.execution_api_server_url": f"{self.uri}/execution/",
            "database.sql_alchemy_conn": f"sqlite:///{self.folder}/airflow.db",
            "logging.base_log_folder": str(self.folder / "logs"),
            "api.host": "127.0.0.1",
            "api.port": str(self.port),
            "api.base_url": self.uri,
            "api.secret_key": uuid.uuid4().hex,
            "api_auth.jwt_secret": uuid.uuid4().hex,
            "scheduler.scheduler_idle_sleep_time": "0.1",
            "scheduler.orphaned_tasks_check_interval": "5",
            "scheduler.scheduler_health_check_threshold": "10",
            "scheduler.task_instance_heartbeat_timeout": "20",
            "scheduler.task_instance_heartbeat_timeout_detection_interval": "3",
            "triggerer.job_heartbeat_sec": "2",
            "triggerer.triggerer_health_check_threshold": "8",
            "dag_processor.refresh_interval": "3",
            "dag_processor.parsing_processes": "1",
            "usage_data_collection.enabled": "False",
        }
        named = {f"AIRFLOW__{key.replace('.', '__').upper()}": value for key, value in options.items()}
        paths = os.pathsep.join([str(ROOT), str(ROOT / "plugins")])
        return {"AIRFLOW_HOME": str(self.folder), "PYTHONPATH": paths, "NO_PROXY": "127.0.0.1", **named}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
