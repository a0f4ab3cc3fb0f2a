"""A whole release on the stack in docker compose: every step a container, every replica a container, bytes in S3."""

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from pipeline.fleet.envoy_routes import COMPLETION_PATHS
from tests.integration.docker.compose_stack import ComposeStack

pytestmark = [pytest.mark.integration, pytest.mark.needs("docker"), pytest.mark.timeout(900)]

MODEL = "support-intents"
LIMIT_S = 600
CONF = {
    "recipe": "demo",
    "overrides": {
        "dataset.generate.train_rows": 400,
        "dataset.generate.eval_rows": 60,
        "validation.min_rows": 100,
        "finetune.epochs": 1,
        "compress.ladder": ["none"],
        "gates.min_score": 0,
        "gates.max_loss": None,
        "rollout.replicas": 2,
        "rollout.steps": [100],
        "rollout.step_s": 1,
        "rollout.min_requests": 5,
    },
}
LIST_KEYS = """
import boto3
from pipeline import settings
found = boto3.client("s3", endpoint_url=settings.load().s3_endpoint).list_objects_v2(Bucket="slipway", Prefix="store/")
print("\\n".join(entry["Key"] for entry in found["Contents"]))
"""


@pytest.fixture(scope="module")
def finished(compose_stack: ComposeStack) -> dict[str, Any]:
    """The tasks of a release that was asked for through Airflow's REST API, by name."""
    body = {"dag_run_id": "by-hand", "logical_date": None, "conf": CONF}
    with compose_stack.airflow() as airflow:
        assert airflow.post("/dags/release/dagRuns", json=body).status_code == 200
        _wait(lambda: _state(airflow) in ("success", "failed"), "the release")
        found = airflow.get("/dags/release/dagRuns/by-hand/taskInstances").json()["task_instances"]
        tasks = {task["task_id"]: task for task in found}
        assert _state(airflow) == "success", {name: task["state"] for name, task in tasks.items()}
        return tasks


def test_the_released_model_answers_through_the_gateway(compose_stack: ComposeStack, finished: dict[str, Any]) -> None:
    """Nothing else has to be done: the registry's alias brings it there."""
    assert finished["promote"]["state"] == "success"
    body = {"model": MODEL, "messages": [{"role": "user", "content": "where is my card"}], "max_tokens": 8}
    with compose_stack.gateway() as gateway:

        def answer() -> httpx.Response:
            return gateway.post(COMPLETION_PATHS[0], json=body)

        _wait(lambda: answer().status_code == 200, "an answer")
        _wait(lambda: _alias_status(compose_stack) == 200, "the end of the rollout")
        assert answer().headers["x-slipway-version"] == "1"
        assert answer().json()["model"] == MODEL


@pytest.mark.usefixtures("finished")
def test_replicas_are_containers_that_only_the_gateways_network_reaches(compose_stack: ComposeStack) -> None:
    """With addresses of their own, no port outside, and none of the home but the bundles, which they cannot change."""
    label = f"label=com.docker.compose.project={compose_stack.project}"
    names = compose_stack.run("docker", "ps", "--quiet", "--filter", label, "--filter", "label=slipway.replica").split()
    assert len(names) == 2
    for replica in json.loads(compose_stack.run("docker", "inspect", *names)):
        assert list(replica["NetworkSettings"]["Networks"]) == [f"{compose_stack.project}_fleet"]
        assert not replica["HostConfig"]["PortBindings"]
        assert replica["HostConfig"]["ReadonlyRootfs"]
        assert replica["HostConfig"]["CapDrop"] == ["ALL"]
        assert [(mount["Destination"], mount["RW"]) for mount in replica["Mounts"]] == [
            ("/var/lib/slipway/cache", False)
        ]


@pytest.mark.usefixtures("finished")
def test_the_artifacts_lie_in_the_bucket(compose_stack: ComposeStack) -> None:
    """A manifest for every step."""
    keys = compose_stack.python("airflow-scheduler", LIST_KEYS).split()
    manifests = [key for key in keys if key.endswith("/manifest.json")]
    assert {key.split("/")[1] for key in manifests} >= {"plan", "validate", "finetune", "evaluate", "register"}


@pytest.mark.usefixtures("finished")
def test_prometheus_has_the_replicas_figures(compose_stack: ComposeStack) -> None:
    """It finds them by what the rollout wrote down."""
    url, wanted = f"{compose_stack.url('prometheus')}/api/v1/query", {"query": f'up{{job="replicas",model="{MODEL}"}}'}

    def up() -> list[str]:
        return [found["value"][1] for found in httpx.get(url, params=wanted).json()["data"]["result"]]

    _wait(lambda: up() == ["1", "1"], "both replicas' figures")


@pytest.mark.usefixtures("finished")
def test_status_tells_the_same_from_the_command_line(compose_stack: ComposeStack) -> None:
    """With the addresses that people use."""
    told = json.loads(compose_stack.compose("run", "--rm", "-T", "--no-deps", "cli", "status", "--json"))
    assert told["serving"]["version"] == told["champion"]["version"] == "1"
    assert told["gateway"] == compose_stack.url("gateway")
    assert [replica["healthy"] for replica in told["replicas"]] == [True, True]


def _alias_status(stack: ComposeStack) -> int:
    """200 once the registry says that a version is served."""
    with stack.mlflow() as mlflow:
        wanted = {"name": MODEL, "alias": "serving"}
        return mlflow.get("/api/2.0/mlflow/registered-models/alias", params=wanted).status_code


def _state(airflow: httpx.Client) -> str:
    return str(airflow.get("/dags/release/dagRuns/by-hand").json()["state"])


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {LIMIT_S} s: {what}"
        time.sleep(1)
