"""The stack in docker compose: it comes up from nothing, keeps its doors shut, and can be saved and put back."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.settings import ROOT
from pipeline.stack import compose_init
from tests.integration.docker.compose_stack import FILES, ComposeStack

pytestmark = [pytest.mark.integration, pytest.mark.needs("docker")]

DASHBOARDS = sorted((ROOT / "infra" / "grafana" / "dashboards").glob("*.json"))
ARTIFACT = "/api/2.0/mlflow-artifacts/artifacts/probe"


def wait(what: str, condition: Callable[[], object], timeout_s: float = 60) -> None:
    """Until `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s: {what}"
        time.sleep(0.5)


def queries(path: Path) -> Iterator[str]:
    """Every query of a dashboard."""
    for panel in json.loads(path.read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])


@pytest.mark.parametrize("files", [FILES[:1], FILES], ids=["official", "registry-free"])
def test_the_files_are_clean(tmp_path: Path, files: tuple[Path, ...]) -> None:
    """Not even a warning."""
    prepared = ComposeStack.prepare(tmp_path)
    stack = ComposeStack(tmp_path, prepared.project, prepared.ports, files)
    command = ["docker", "compose", "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, env=stack.environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_everything_is_healthy_and_what_is_done_once_is_done(compose_stack: ComposeStack) -> None:
    """From no container, volume or network at all."""
    containers = compose_stack.inspect()
    for name, lasts in compose_stack.services().items():
        state = containers[name]["State"]
        if lasts:
            assert state["Health"]["Status"] == "healthy", name
        else:
            assert (state["Status"], state["ExitCode"]) == ("exited", 0), name


def test_ports_are_bound_on_loopback_only(compose_stack: ComposeStack) -> None:
    """As Docker has it, whatever the file says."""
    bound = {
        (name, binding["HostIp"])
        for name, container in compose_stack.inspect().items()
        for bindings in (container["HostConfig"]["PortBindings"] or {}).values()
        for binding in bindings
    }
    assert {address for _, address in bound} == {"127.0.0.1"}
    assert {name for name, _ in bound} == {"airflow-api-server", "mlflow", "gateway", "prometheus"}


def test_replicas_and_databases_cannot_be_reached_from_outside(compose_stack: ComposeStack) -> None:
    """Their networks lead nowhere, and what faces people does not even know the database's name."""
    for name in ("data", "fleet", "jobs"):
        found = json.loads(compose_stack.run("docker", "network", "inspect", f"{compose_stack.project}_{name}"))
        assert found[0]["Internal"] is True, name
    look_up = "import socket\ntry: print(socket.getaddrinfo('postgres', 5432))\nexcept OSError: print('unknown')"
    said = compose_stack.compose("exec", "-T", "gateway", "python", "-c", look_up)
    assert said.strip() == "unknown"


def test_envoys_own_interface_is_for_the_fleets_network_alone(compose_stack: ComposeStack) -> None:
    """It shows keys and takes orders. MLflow, which people reach, sees the gateway's listener and not this."""
    ask = (
        "import socket\nfor at in (('gateway', 8000), ('gateway', 9901), ('gateway-admin', 9901)):\n"
        " try: socket.create_connection(at, timeout=5).close(); print('open')\n"
        " except OSError as error: print(type(error).__name__)"
    )
    said = compose_stack.compose("exec", "-T", "mlflow", "python", "-c", ask)
    assert said.split() == ["open", "ConnectionRefusedError", "gaierror"]
    told = compose_stack.compose("run", "--rm", "-T", "--no-deps", "--entrypoint", "python", "cli", "-c", ask)
    assert told.split()[-1] == "open"


def test_prometheus_sees_of_the_home_only_the_replicas_addresses(compose_stack: ComposeStack) -> None:
    """The home has keys in it."""
    said = compose_stack.compose("exec", "-T", "prometheus", "find", "/var/lib/slipway", "-type", "f")
    assert said.split() == ["/var/lib/slipway/fleet/targets/replicas.json"]


def test_containers_are_locked_down(compose_stack: ComposeStack) -> None:
    """As Docker has it: read-only, no capabilities, no way to gain any, and no root but the one that may only chown."""
    for name, container in compose_stack.inspect().items():
        host = container["HostConfig"]
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert "no-new-privileges:true" in host["SecurityOpt"], name
        assert not host["Privileged"], name
        root = container["Config"]["User"].partition(":")[0] in ("", "0", "root")
        assert root == (name == "volumes"), name


def test_docker_tells_no_secret(compose_stack: ComposeStack) -> None:
    """Neither as a variable, nor on a command line, nor in a label; nor do the services' logs."""
    logs = compose_stack.compose("logs", "--no-color", *compose_stack.services())
    shown = json.dumps(compose_stack.inspect()) + logs
    names = [secret.name for secret in compose_init.SECRETS]
    assert [name for name in names if compose_stack.secret(name) in shown] == []


def test_airflow_knows_its_dags_and_whom_to_let_in(compose_stack: ComposeStack) -> None:
    """Only with the password of the secret."""
    with compose_stack.airflow() as airflow:
        wait("the DAGs are known", lambda: {"release", "rollout"} <= dag_ids(airflow))
        assert airflow.get("/importErrors").json()["import_errors"] == []
    wrong = {"username": "admin", "password": "admin"}
    assert httpx.post(f"{compose_stack.url('airflow')}/auth/token", json=wrong, timeout=60).status_code == 401


def dag_ids(airflow: httpx.Client) -> set[str]:
    return {dag["dag_id"] for dag in airflow.get("/dags").json()["dags"]}


def test_mlflow_refuses_strangers_and_strange_names(compose_stack: ComposeStack) -> None:
    """No password, a wrong one, and a request that was sent to another host's name."""
    url = f"{compose_stack.url('mlflow')}/api/2.0/mlflow/registered-models/search"
    assert httpx.get(url, timeout=60).status_code == 401
    assert httpx.get(url, auth=("admin", "password1234"), timeout=60).status_code == 401
    with compose_stack.mlflow() as mlflow:
        assert mlflow.get(url).status_code == 200
        assert mlflow.get(url, headers={"Host": "evil.example"}).status_code == 403


def test_mlflows_artifacts_lie_in_the_bucket(compose_stack: ComposeStack) -> None:
    """Through MLflow, so that nobody else needs the bucket's keys for them."""
    with compose_stack.mlflow() as mlflow:
        mlflow.put(f"{ARTIFACT}/report.txt", content=b"42").raise_for_status()
        assert mlflow.get(f"{ARTIFACT}/report.txt").content == b"42"
    code = (
        "import boto3; s3 = boto3.client('s3', endpoint_url='http://s3:7480');"
        "print(s3.get_object(Bucket='slipway', Key='mlflow/probe/report.txt')['Body'].read().decode())"
    )
    assert compose_stack.python("airflow-scheduler", code).strip() == "42"


def test_the_store_creates_only_what_is_not_there(compose_stack: ComposeStack) -> None:
    """The bucket honours the one write that must not race, and a wrong key is refused."""
    code = (
        "from pipeline import artifacts, settings\n"
        "store = artifacts.open_store(settings.load().store_uri)\n"
        "print(store.create('probe/once', b'first'), store.create('probe/once', b'second'), store.read('probe/once'))"
    )
    assert compose_stack.python("airflow-scheduler", code).split(None, 2) == ["True", "False", "b'first'\n"]
    wrong = "import os; os.environ['AWS_SECRET_ACCESS_KEY'] = 'wrong'\n" + code
    with pytest.raises(AssertionError, match="SignatureDoesNotMatch"):
        compose_stack.python("airflow-scheduler", wrong)


def test_the_command_line_works_from_its_container(compose_stack: ComposeStack) -> None:
    """With the addresses that people use."""
    found = json.loads(compose_stack.compose("run", "--rm", "-T", "--no-deps", "cli", "status", "--json"))
    assert found["champions_known"] is True
    assert found["gateway"] == compose_stack.url("gateway")
    assert found["api_key"] == compose_stack.secret("gateway_api_key")


def ask_prometheus(stack: ComposeStack, query: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{stack.url('prometheus')}/api/v1/query", params={"query": query}, timeout=30).json()
    assert answer["status"] == "success", f"{query}: {answer.get('error')}"
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_prometheus_understands_every_query_of_the_dashboards(compose_stack: ComposeStack, path: Path) -> None:
    """Grafana would show an empty panel and no error."""
    for query in queries(path):
        ask_prometheus(compose_stack, query)


def test_prometheus_has_the_gateways_figures(compose_stack: ComposeStack) -> None:
    """What the dashboard shows of requests, without any model served."""
    asked = [query for path in DASHBOARDS for query in queries(path) if "envoy_http_" in query]
    assert len(asked) >= 5
    with compose_stack.gateway() as gateway:

        def all_there() -> bool:
            gateway.get("/v1/models")
            return all(figures(compose_stack, query) for query in asked)

        wait("every query about requests has a figure", all_there)


def figures(stack: ComposeStack, query: str) -> list[float]:
    """Numbers; Prometheus says NaN where nothing was counted yet."""
    values = [float(found["value"][1]) for found in ask_prometheus(stack, query)]
    return [value for value in values if value == value]
