"""kill -9 of what a rollout leans on, in mid-rollout, on a whole stack with real replicas.

Prints one line of JSON a fault, for the table in docs/operations.md: what constant clients saw, and how long it took.
"""

import json
import os
import signal
import time

import httpx
import pytest
from clients import VERSION_HEADER, ask, constant_clients
from releases import MODEL, Rows, release, serving, wait_until
from running_stack import RunningStack

from pipeline.fleet.state import read_models
from pipeline.fleet.views import read_fleet
from pipeline.registry.models import CHAMPION, SERVING, Registry

pytestmark = [pytest.mark.e2e, pytest.mark.drill, pytest.mark.needs("data"), pytest.mark.timeout(1200)]

SETTINGS = {"rollout.keep_warm_s": 1, "rollout.step_s": 8, "finetune.epochs": 1, "rollout.max_latency_ratio": 50}


@pytest.fixture(scope="module")
def two_versions(
    stack: RunningStack, slice_of_banking77: Rows, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """Two versions of one model; the second serves."""
    folder = tmp_path_factory.mktemp("releases")
    versions = [
        str(
            release(stack, slice_of_banking77, folder / f"{seed}.json", **SETTINGS, **{"finetune.seed": seed})[
                "version"
            ]
        )
        for seed in (1, 2)
    ]
    return versions[0], versions[1]


def move_alias(stack: RunningStack, version: str) -> None:
    """As a person does in MLflow."""
    body = {"name": MODEL, "alias": CHAMPION, "version": version}
    url = f"{stack.mlflow_url}/api/2.0/mlflow/registered-models/alias"
    httpx.post(url, json=body, timeout=60).raise_for_status()


def disagreements(stack: RunningStack, version: str) -> list[str]:
    """Who says something else than that `version` serves."""
    registry = Registry(stack.mlflow_url, stack.home_path)
    model = read_models(stack.home_path)[MODEL]
    assert model.serving is not None
    claims = {
        "the fleet's state": model.serving.version,
        "the alias `serving`": registry.alias(MODEL, SERVING),
        "the alias `champion`": registry.alias(MODEL, CHAMPION),
        "an answer": ask(stack.gateway_url, stack.credentials.api_key, MODEL).headers.get(VERSION_HEADER),
    }
    found = [f"{who} says {said}, expected {version}" for who, said in claims.items() if said != version]
    if model.weights != {model.serving.deployment: 100}:
        found.append(f"the weights are {model.weights}")
    return found


@pytest.mark.parametrize("program", ["mlflow", "airflow-scheduler", "airflow-triggerer", "postgres"])
def test_a_rollout_outlives(stack: RunningStack, two_versions: tuple[str, str], program: str) -> None:
    """Whatever dies in its middle: the version gets all the traffic, no request fails, and all agree afterwards."""
    before = serving(stack)
    wanted = next(version for version in two_versions if version != before)
    with constant_clients(stack.gateway_url, stack.credentials.api_key, MODEL) as load:
        wait_until(lambda: load.answers.total() > 5, "answers", 60)
        moved = time.time()
        move_alias(stack, wanted)
        wait_until(lambda: load.answers[wanted] > 0, "the first answer of the canary", 240)
        first_answer_s = time.time() - moved
        pid = stack.supervisor.state(program).pid  # type: ignore[union-attr]
        killed = time.time()
        os.kill(pid, signal.SIGKILL)  # type: ignore[arg-type]
        wait_until(lambda: (stack.supervisor.state(program).pid or pid) != pid, "it runs again", 120)  # type: ignore[union-attr]
        back_s = time.time() - killed
        wait_until(lambda: serving(stack) == wanted, f"version {wanted} serves", 300)
        served_s = time.time() - killed
        wait_until(lambda: disagreements(stack, wanted) == [], "all agree", 120)
    line = {
        "killed": program,
        "alias_to_first_answer_s": round(first_answer_s, 1),
        "runs_again_s": round(back_s, 1),
        "promoted_s": round(served_s, 1),
        "answers": load.answers.total(),
        "failed": len(load.failures),
    }
    print(json.dumps(line), flush=True)
    assert load.failures == []
    assert {replica.version for replica in read_fleet(stack.home_path)[MODEL].replicas} >= {wanted}
