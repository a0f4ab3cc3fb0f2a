"""What each of docker compose's services becomes, and where its secrets are and are not."""

import hashlib
import json
import os
import socket
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.errors import SpecError, TransientError
from pipeline.fleet.doors import tls
from pipeline.settings import Settings, load
from pipeline.stack import compose_services, compose_setup, container_check, in_compose
from pipeline.stack.compose_init import SECRETS, generate
from pipeline.stack.layout import Layout


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, str]:
    """All of them, as docker mounts them."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    made = {secret.name: generate(secret.kind) or "given-by-somebody" for secret in SECRETS}
    for name, text in made.items():
        (folder / name).write_text(text)
    return made


@pytest.fixture
def configured(tmp_path: Path, secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a service, with a folder instead of the container's own memory."""
    monkeypatch.setattr(in_compose, "MEMORY", tmp_path)
    monkeypatch.setattr(compose_setup, "set_mlflow_password", lambda *_: None)
    settings = load(
        {
            "SLIPWAY_HOME": str(tmp_path / "home"),
            "SLIPWAY_SECRETS": str(tmp_path / "secrets"),
            "SLIPWAY_STORE": "s3://slipway/store",
            "SLIPWAY_S3_ENDPOINT": "http://s3:7480",
            "SLIPWAY_PORT_AIRFLOW": "18080",
            "SLIPWAY_PORT_MLFLOW": "15000",
        }
    )
    Layout(settings.home_path).create()
    return settings


def run(service: str, configured: Settings, *arguments: str) -> in_compose.Run:
    found = in_compose.prepare(service, arguments, configured)
    assert found is not None
    return found


SERVICES = ("airflow-api-server", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer", "mlflow")


@pytest.mark.parametrize("service", SERVICES)
def test_no_secret_is_on_a_command_line(service: str, configured: Settings, secrets: dict[str, str]) -> None:
    """Everybody on the machine can read those."""
    command = " ".join(run(service, configured).command)
    assert not [name for name, text in secrets.items() if text in command]


def test_airflows_settings_hold_commands_that_print_the_secrets(configured: Settings, secrets: dict[str, str]) -> None:
    """The commands work in a shell without this project."""
    variables = run("airflow-scheduler", configured).variables
    ours = {name: text for name, text in variables.items() if name.startswith("AIRFLOW__")}
    assert not [name for name, text in secrets.items() if text in json.dumps(ours)]
    command = ours["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD"]
    uri = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout  # noqa: S602
    assert uri == compose_services.database_uri("airflow", secrets["airflow_database_password"])


def test_only_the_api_server_is_told_airflows_password(configured: Settings, tmp_path: Path) -> None:
    """In a file in memory that no other container sees and only its user reads."""
    run("airflow-scheduler", configured)
    path = tmp_path / "airflow-passwords.json"
    assert not path.exists()
    run("airflow-api-server", configured)
    assert json.loads(path.read_text()).keys() == {"admin"}
    assert path.stat().st_mode & 0o777 == 0o600


def test_airflow_is_found_by_its_workers_inside_and_by_people_outside(configured: Settings) -> None:
    """Two addresses of the same server."""
    variables = run("airflow-scheduler", configured).variables
    assert variables["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://airflow-api-server:8080/execution/"
    assert variables["AIRFLOW__API__BASE_URL"] == "http://127.0.0.1:18080"


def test_mlflow_answers_only_to_its_names(configured: Settings) -> None:
    """And keeps its artifacts beside the store."""
    command = run("mlflow", configured).command
    assert command[command.index("--allowed-hosts") + 1] == "mlflow:5000,127.0.0.1:15000,localhost:15000"
    assert command[command.index("--artifacts-destination") + 1] == "s3://slipway/mlflow"


@pytest.fixture
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's name server, as it answers in the gateway's container."""
    monkeypatch.setattr(socket, "gethostbyname", {"gateway-admin": "10.213.200.5"}.__getitem__)


@pytest.mark.usefixtures("_names")
def test_the_gateway_takes_the_clients_key_from_its_secret(configured: Settings, secrets: dict[str, str]) -> None:
    """It listens for other containers, with its own interface in the fleet's network alone, and leaves the key where
    rollouts find it."""
    layout = Layout(configured.home_path)
    compose_setup.write_json(layout.stack_path, compose_services.ports(configured))
    command = run("gateway", configured).command
    assert secrets["gateway_api_key"] not in " ".join(command)
    assert (layout.fleet_path / "client_key").read_text() == secrets["gateway_api_key"]
    routes = (layout.gateway_path / "xds" / "rds.json").read_text()
    assert secrets["gateway_api_key"] not in routes
    assert hashlib.sha256(secrets["gateway_api_key"].encode()).hexdigest() in routes
    listener = json.loads((layout.gateway_path / "xds" / "lds.json").read_text())["resources"][0]
    assert listener["address"]["socket_address"] == {"address": "0.0.0.0", "port_value": 8000}
    admin = json.loads((layout.gateway_path / "bootstrap.json").read_text())["admin"]
    assert admin["address"]["socket_address"] == {"address": "10.213.200.5", "port_value": 9901}


@pytest.mark.parametrize("chosen", ["https", "http"])
def test_another_setup_leaves_the_gateways_address_as_it_is(configured: Settings, chosen: str) -> None:
    """`docker compose up` runs it again while the gateway goes on."""
    layout = Layout(configured.home_path)
    if chosen == "https":
        tls_path = layout.gateway_path / "tls.json"
        compose_setup.write_json(tls_path, tls.Certificate(cert_path="/tls/tls.crt", key_path="/tls/tls.key"))
    compose_setup.write_ports(configured, layout)
    assert layout.ports().public_url("gateway").startswith(f"{chosen}://127.0.0.1:")
    assert layout.ports().public_url("airflow") == "http://127.0.0.1:18080"


@pytest.mark.usefixtures("_names")
@pytest.mark.parametrize("was_good", [True, False])
def test_a_gateway_that_starts_while_its_certificate_is_renewed_shows_the_one_before(
    configured: Settings, tmp_path: Path, *, was_good: bool
) -> None:
    """Half of a new pair keeps no client out; a first one that is no good does."""
    layout, folder = Layout(configured.home_path), tmp_path / "tls"
    folder.mkdir()
    (folder / "tls.crt").write_text("half of it")
    compose_setup.write_ports(configured, layout)
    if was_good:
        compose_setup.write_json(layout.gateway_path / "tls.json", tls.certificate_in(folder))
        tls.secret_path(layout).parent.mkdir(parents=True)
        tls.secret_path(layout).write_text("shown")
    configured = configured.model_copy(update={"tls_path": folder})
    if not was_good:
        with pytest.raises(SpecError, match=r"tls\.crt"):
            run("gateway", configured)
        return
    run("gateway", configured)
    listener = json.loads((layout.gateway_path / "xds" / "lds.json").read_text())["resources"][0]
    assert [chain["name"] for chain in listener["filter_chains"]] == ["tls", "own"]
    assert tls.secret_path(layout).read_text() == "shown"


def test_a_gateway_that_is_not_in_the_fleets_network_does_not_start(
    configured: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than let everybody reach Envoy's own interface."""

    def unknown(_host: str) -> str:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "gethostbyname", unknown)
    compose_setup.write_json(Layout(configured.home_path).stack_path, compose_services.ports(configured))
    with pytest.raises(TransientError, match=r"'gateway-admin'.*network `fleet`"):
        run("gateway", configured)


def test_any_program_can_be_run_with_the_logins(configured: Settings, secrets: dict[str, str]) -> None:
    """The agent and the command line."""
    found = run("run", configured, "python", "-m", "pipeline.commands")
    assert found.command == ("python", "-m", "pipeline.commands")
    assert found.variables["AWS_SECRET_ACCESS_KEY"] == secrets["s3_secret_key"]
    assert found.variables["MLFLOW_TRACKING_PASSWORD"] == secrets["mlflow_admin_password"]


@pytest.mark.parametrize(("written", "handed_on"), [("", None), ("hf_of_the_team\n", "hf_of_the_team")])
def test_the_hubs_token_is_handed_on_if_there_is_one(
    configured: Settings, tmp_path: Path, written: str, handed_on: str | None
) -> None:
    """The file is empty until somebody writes it."""
    (tmp_path / "secrets" / "hf_token").write_text(written)
    assert run("run", configured, "python").variables.get("HF_TOKEN") == handed_on


def test_a_service_without_its_secret_says_which(configured: Settings, tmp_path: Path) -> None:
    """Its name, and who gives it."""
    (tmp_path / "secrets" / "mlflow_secret_key").unlink()
    with pytest.raises(SpecError, match=r"mlflow_secret_key: No such file.*slipway init"):
        run("mlflow", configured)


def test_an_unknown_service_is_refused(configured: Settings) -> None:
    """With those that there are."""
    with pytest.raises(SpecError, match=r"'gatway'.*gateway"):
        run("gatway", configured)


def test_clients_read_what_they_need_from_the_secrets(configured: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no credentials.json in a home that containers share."""
    monkeypatch.setenv("SLIPWAY_SECRETS", str(configured.secrets_path))
    access = Layout(configured.home_path).access()
    assert access.airflow_user == "admin"
    assert access.api_key.startswith("slipway-")


def test_a_heartbeat_counts_only_if_it_is_younger_than_the_container() -> None:
    """Else a service that was just started would be healthy before it works."""
    began = time.time()
    fresh = {"status": "healthy", "latest_scheduler_heartbeat": datetime.fromtimestamp(began + 1, UTC).isoformat()}
    stale = {"status": "healthy", "latest_scheduler_heartbeat": datetime.fromtimestamp(began - 9, UTC).isoformat()}
    assert container_check.judge_heartbeat(fresh, began) == ""
    assert "earlier container" in container_check.judge_heartbeat(stale, began)
    assert "unhealthy" in container_check.judge_heartbeat({"status": "unhealthy"}, began)


def test_a_touched_file_counts_only_if_it_is_younger_than_the_container() -> None:
    """It lies in the home, where the container before left it."""
    now = time.time()
    assert container_check.judge_touch(now - 1, since=now - 5) == ""
    assert "since its container began" in container_check.judge_touch(now - 9, since=now - 5)
    assert "for 200 s" in container_check.judge_touch(now - 200, since=now - 300)


def test_the_check_asks_the_ports_that_the_services_listen_on() -> None:
    """It uses the standard library alone, so it cannot import them."""
    ports = compose_services.PORTS
    assert f":{ports['airflow']}/" in container_check.OWN["airflow-api-server"]
    assert f":{ports['mlflow']}/" in container_check.OWN["mlflow"]
    assert f":{ports['gateway_admin']}/" in container_check.OWN["gateway"]
    assert f":{ports['metrics']}/" in container_check.OWN["metrics"]
    assert abs(container_check._container_started() - time.time()) < os.times().elapsed + 1
