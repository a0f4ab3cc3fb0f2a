"""A whole release on the stack in docker compose: every step a container, every replica a container, bytes in S3."""

import json
from typing import Any

import httpx
import pytest

from pipeline.fleet.envoy_routes import COMPLETION_PATHS
from tests.integration.docker.compose_release import MODEL, alias, wait_until
from tests.integration.docker.compose_stack import ComposeStack

pytestmark = [pytest.mark.integration, pytest.mark.needs("docker"), pytest.mark.timeout(900)]

LIST_KEYS = """
import boto3
from pipeline import settings
found = boto3.client("s3", endpoint_url=settings.load().s3_endpoint).list_objects_v2(Bucket="slipway", Prefix="store/")
print("\\n".join(entry["Key"] for entry in found["Contents"]))
"""


def test_the_released_model_answers_through_the_gateway(compose_stack: ComposeStack, released: dict[str, Any]) -> None:
    """Nothing else has to be done: the registry's alias brings it there."""
    assert released["promote"]["state"] == "success"
    body = {"model": MODEL, "messages": [{"role": "user", "content": "where is my card"}], "max_tokens": 8}
    with compose_stack.gateway() as gateway:

        def answer() -> httpx.Response:
            return gateway.post(COMPLETION_PATHS[0], json=body)

        wait_until(lambda: answer().status_code == 200, "an answer")
        wait_until(lambda: alias(compose_stack, "serving") == "1", "the end of the rollout")
        assert answer().headers["x-slipway-version"] == "1"
        assert answer().json()["model"] == MODEL


@pytest.mark.usefixtures("released")
def test_replicas_are_containers_that_only_the_gateways_network_reaches(compose_stack: ComposeStack) -> None:
    """With addresses of their own, no port outside, and none of the home but the bundles, which they cannot change."""
    label = f"label=com.docker.compose.project={compose_stack.project}"
    names = compose_stack.run("docker", "ps", "--quiet", "--filter", label, "--filter", "label=slipway.replica").split()
    assert len(names) == 1
    for replica in json.loads(compose_stack.run("docker", "inspect", *names)):
        assert list(replica["NetworkSettings"]["Networks"]) == [f"{compose_stack.project}_fleet"]
        assert not replica["HostConfig"]["PortBindings"]
        assert replica["HostConfig"]["ReadonlyRootfs"]
        assert replica["HostConfig"]["CapDrop"] == ["ALL"]
        assert [(mount["Destination"], mount["RW"]) for mount in replica["Mounts"]] == [
            ("/var/lib/slipway/cache", False)
        ]


@pytest.mark.usefixtures("released")
def test_the_artifacts_lie_in_the_bucket(compose_stack: ComposeStack) -> None:
    """A manifest for every step."""
    keys = compose_stack.python("airflow-scheduler", LIST_KEYS).split()
    manifests = [key for key in keys if key.endswith("/manifest.json")]
    assert {key.split("/")[1] for key in manifests} >= {"plan", "validate", "finetune", "evaluate", "register"}


@pytest.mark.usefixtures("released")
def test_prometheus_has_the_replicas_figures(compose_stack: ComposeStack) -> None:
    """It finds them by what the rollout wrote down."""
    url, wanted = f"{compose_stack.url('prometheus')}/api/v1/query", {"query": f'up{{job="replicas",model="{MODEL}"}}'}

    def up() -> list[str]:
        return [found["value"][1] for found in httpx.get(url, params=wanted).json()["data"]["result"]]

    wait_until(lambda: up() == ["1"], "the replica's figures")


@pytest.mark.usefixtures("released")
def test_status_tells_the_same_from_the_command_line(compose_stack: ComposeStack) -> None:
    """With the addresses that people use."""
    told = json.loads(compose_stack.compose("run", "--rm", "-T", "--no-deps", "cli", "status", "--json"))
    assert told["serving"]["version"] == told["champion"]["version"] == "1"
    assert told["gateway"] == compose_stack.url("gateway")
    assert [replica["healthy"] for replica in told["replicas"]] == [True]
    assert "The stack is down" not in compose_stack.compose("run", "--rm", "-T", "--no-deps", "cli", "status")
