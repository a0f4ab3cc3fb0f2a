"""The whole local stack: up, up again, killed and repaired, down."""

import json
import os
import signal
import socket
import subprocess
import sys

import httpx
import psutil
import pytest
from releases import wait_until
from running_stack import RunningStack

from pipeline.stack import airflow_part, processes

pytestmark = pytest.mark.e2e

PARTS = ("postgres", "mlflow", "gateway", *airflow_part.PROGRAMS)


def pids(stack: RunningStack) -> dict[str, int]:
    """Of the parts that run."""
    states = stack.supervisor.states()
    return {state.name: state.pid for state in states if state.state == "RUNNING" and state.pid}


def assert_all_answer(stack: RunningStack) -> None:
    """Within a while: replicas that load may take all cores for some seconds."""
    assert pids(stack).keys() >= set(PARTS)
    wait_until(lambda: airflow_part.unhealthy(stack.layout, stack.supervisor) == [], "Airflow's health", 120)
    assert httpx.get(f"{stack.mlflow_url}/health", timeout=60).status_code == 200
    assert httpx.post(f"{stack.gateway_url}/v1/chat/completions", json={}, timeout=60).status_code == 401


def test_up_brings_every_part_and_status_tells_where(stack: RunningStack) -> None:
    """The JSON has what programs need; nothing is served yet unless another test released it."""
    assert_all_answer(stack)
    status = json.loads(stack.slipway("status", "--json").stdout)
    assert status["gateway"] == stack.gateway_url
    assert status["airflow"] == stack.airflow_url
    assert status["mlflow"] == stack.mlflow_url
    assert status["api_key"] == stack.credentials.api_key
    assert status.keys() >= {"champion", "serving", "replicas", "models", "processes"}


def test_up_twice_leaves_every_process_alone(stack: RunningStack) -> None:
    """Harmless to repeat."""
    before = pids(stack)
    stack.up()
    assert pids(stack) == before


def test_the_stack_listens_on_loopback_only(stack: RunningStack) -> None:
    """Nobody else on the network can reach it."""
    addresses = {
        connection.laddr.ip
        for process in processes.owned(stack.layout)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def test_airflow_takes_the_password_and_knows_the_dags(stack: RunningStack) -> None:
    """Without import errors."""
    with stack.airflow() as airflow:
        wait_until(
            lambda: {dag["dag_id"] for dag in airflow.get("/dags").json()["dags"]} >= {"release", "rollout"},
            "DAGs",
            120,
        )
        assert airflow.get("/importErrors").json()["import_errors"] == []
    who = {"username": stack.credentials.airflow_user, "password": "wrong"}
    wrong = httpx.post(f"{stack.airflow_url}/auth/token", json=who, timeout=60)
    assert wrong.status_code == 401


def test_a_killed_scheduler_keeps_no_lock_for_long(stack: RunningStack) -> None:
    """PostgreSQL ends its transaction, though forks of it keep the connection; else no task would be queued again."""
    scheduler = psutil.Process(pids(stack)["airflow-scheduler"])
    ask = "import psycopg2; c = psycopg2.connect('{}').cursor(); c.execute('SHOW {}'); print(*c.fetchone())"
    dsn = f"host={stack.layout.runtime_path} user=slipway dbname=airflow"
    code = ask.format(dsn, "idle_in_transaction_session_timeout")
    shown = subprocess.run(
        [sys.executable, "-c", code], env=scheduler.environ(), capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "30s"


def test_every_part_killed_at_once_is_repaired_by_up(stack: RunningStack) -> None:
    """New processes, and all of them answer."""
    before = pids(stack)
    for name in PARTS:
        os.kill(before[name], signal.SIGKILL)
    stack.up()
    assert_all_answer(stack)
    assert all(pids(stack)[name] != before[name] for name in PARTS)


@pytest.mark.drill
def test_a_killed_supervisord_is_repaired_by_up(stack: RunningStack) -> None:
    """Its orphans, which hold the ports, are ended first."""
    before = pids(stack)
    os.kill(int((stack.layout.supervisor_path / "supervisord.pid").read_text()), signal.SIGKILL)
    stack.up()
    assert_all_answer(stack)
    assert not any(psutil.pid_exists(before[name]) for name in PARTS)


def test_down_leaves_no_process_and_up_brings_everything_back(stack: RunningStack) -> None:
    """With the same ports and credentials; a taken port is named before anything starts."""
    ports, credentials = stack.layout.ports(), stack.credentials
    stack.down()
    stack.down()
    with socket.create_server(("127.0.0.1", ports.mlflow)):
        refused = stack.slipway("up")
        assert refused.returncode == 64
        assert f"port {ports.mlflow} (mlflow)" in refused.stderr
        assert processes.owned(stack.layout) == []
    stack.up()
    assert_all_answer(stack)
    assert (stack.layout.ports(), stack.credentials) == (ports, credentials)
