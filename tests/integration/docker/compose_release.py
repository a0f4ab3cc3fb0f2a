"""Small releases on a stack in docker compose, asked for through Airflow's REST API."""

import time
from collections.abc import Callable
from typing import Any

import httpx

from tests.integration.docker.compose_stack import ComposeStack

MODEL = "support-intents"
LIMIT_S = 600.0
SMALL = {
    "dataset.generate.train_rows": 400,
    "dataset.generate.eval_rows": 60,
    "validation.min_rows": 100,
    "finetune.nodes": 1,
    "finetune.epochs": 1,
    "compress.ladder": ["none"],
    "gates.min_score": 0,
    "gates.max_loss": None,
    "rollout.replicas": 1,
    "rollout.steps": [100],
    "rollout.step_s": 1,
    "rollout.min_requests": 5,
}


def ask_for_release(stack: ComposeStack, run_id: str, **overrides: Any) -> None:
    """`overrides` are fields of the recipe by dotted name, beside those that make it small."""
    conf = {"recipe": "demo", "overrides": {**SMALL, **overrides}}
    body = {"dag_run_id": run_id, "logical_date": None, "conf": conf}
    with stack.airflow() as airflow:
        wait_until(lambda: airflow.get("/dags/release").status_code == 200, "the DAG `release` is known")
        answer = airflow.post("/dags/release/dagRuns", json=body)
        assert answer.status_code == 200, answer.text


def run_state(stack: ComposeStack, dag_id: str, run_id: str) -> str:
    return str(_ask_airflow(stack, f"/dags/{dag_id}/dagRuns/{run_id}")["state"])


def tasks_of(stack: ComposeStack, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
    """Every task instance of a run, by the task's name."""
    found = _ask_airflow(stack, f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"]
    return {task["task_id"]: task for task in found}


def newest_run(stack: ComposeStack, dag_id: str) -> str:
    found = _ask_airflow(stack, f"/dags/{dag_id}/dagRuns?order_by=-id&limit=1")["dag_runs"]
    return str(found[0]["dag_run_id"]) if found else ""


def succeeded(stack: ComposeStack, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
    """The tasks of a run that is waited for, and must be a success."""
    wait_until(lambda: run_state(stack, dag_id, run_id) in ("success", "failed"), f"the end of {dag_id} {run_id}")
    tasks = tasks_of(stack, dag_id, run_id)
    state = run_state(stack, dag_id, run_id)
    assert state == "success", {name: task["state"] for name, task in tasks.items()}
    return tasks


def alias(stack: ComposeStack, name: str) -> str:
    """The version that an alias of the model names; "" if there is no such alias."""
    with stack.mlflow() as mlflow:
        wanted = {"name": MODEL, "alias": name}
        answer = mlflow.get("/api/2.0/mlflow/registered-models/alias", params=wanted)
    return str(answer.json()["model_version"]["version"]) if answer.status_code == 200 else ""


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(0.5)


def _ask_airflow(stack: ComposeStack, path: str) -> Any:
    """What Airflow answers, once it does: a test may just have killed it, or its database."""
    said: list[str] = []

    def answer() -> httpx.Response | None:
        try:
            with stack.airflow() as airflow:
                found = airflow.get(path)
        except (httpx.HTTPError, ValueError, KeyError) as error:
            said.append(repr(error))
            return None
        said.append(found.text)
        return found if found.status_code == 200 else None

    deadline = time.monotonic() + 60
    while (found := answer()) is None:
        assert time.monotonic() < deadline, f"Airflow does not answer {path}: {said[-1]}"
        time.sleep(0.5)
    return found.json()
