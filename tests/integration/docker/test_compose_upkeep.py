"""What is done to a stack in docker compose that serves a model: new secrets, a certificate, a backup put back."""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from certificates import Pair

from pipeline.settings import ROOT
from pipeline.stack import compose_init
from tests.integration.docker.compose_release import alias, wait_until
from tests.integration.docker.compose_stack import ComposeStack

pytestmark = [pytest.mark.integration, pytest.mark.needs("docker"), pytest.mark.timeout(900)]

ROTATED = ("gateway_api_key", "mlflow_database_password", "mlflow_admin_password")
"""Between them, nearly every service gets a new container: also the gateway, `jobs` and the scheduler."""
ARTIFACT = "/api/2.0/mlflow-artifacts/artifacts/kept/kept.txt"
KEPT = b"kept" * (5 << 20)


@dataclass(frozen=True)
class Before:
    """The stack, before it was given new secrets and a certificate."""

    secrets: dict[str, str]
    replicas: set[str]
    certificate: Pair


@pytest.fixture(scope="module")
def before(compose_stack: ComposeStack, released: object) -> Before:
    """Secrets were rotated by the commands that `slipway init --rotate` prints, with a certificate put there first."""
    assert released
    wait_until(lambda: alias(compose_stack, "serving") == "1", "the end of the rollout")
    secrets = {name: compose_stack.secret(name) for name in ROTATED}
    before = Before(secrets, replica_ids(compose_stack), Pair.make())
    before.certificate.put(compose_stack.tls_folder)
    for name in ROTATED:
        _, *commands = compose_init.rotate(compose_stack.folder, name)
        for command in commands:
            compose_stack.run("sh", "-c", command.replace(" secrets/", f" {compose_stack.folder}/secrets/"))
    compose_stack.compose("up", "--detach", "--remove-orphans", "jobs")
    compose_stack.compose("restart", "jobs")
    compose_stack.up()
    return before


def replica_ids(stack: ComposeStack) -> set[str]:
    label = f"label=com.docker.compose.project={stack.project}"
    return set(stack.run("docker", "ps", "--quiet", "--filter", label, "--filter", "label=slipway.replica").split())


def test_a_rotated_key_counts_at_once_and_the_old_one_no_more(compose_stack: ComposeStack, before: Before) -> None:
    """Through TLS by now."""
    with compose_stack.gateway() as gateway:
        assert gateway.get("/v1/models").status_code == 200
        old = {"Authorization": f"Bearer {before.secrets['gateway_api_key']}"}
        assert gateway.get("/v1/models", headers=old).status_code == 401


def test_rotated_passwords_of_databases_and_mlflow_count(compose_stack: ComposeStack, before: Before) -> None:
    """MLflow's database role, and the user that everybody signs in with."""
    url = f"{compose_stack.url('mlflow')}/api/2.0/mlflow/registered-models/search"
    assert httpx.get(url, auth=("admin", before.secrets["mlflow_admin_password"]), timeout=60).status_code == 401
    with compose_stack.mlflow() as mlflow:
        assert mlflow.get(url).status_code == 200


def test_what_is_served_outlives_new_containers_of_the_services_that_start_it(
    compose_stack: ComposeStack, before: Before
) -> None:
    """As in an upgrade, or when a secret is replaced: only the removal of the stack ends replicas."""
    assert replica_ids(compose_stack) == before.replicas
    assert len(before.replicas) == 1


def test_a_renewed_certificate_is_shown_without_a_restart(compose_stack: ComposeStack, before: Before) -> None:
    """Clients see the one that lay in the folder when the gateway began, then the one that took its place there."""

    def shown() -> bytes:
        return ssl.get_server_certificate(("127.0.0.1", compose_stack.ports["gateway"]), timeout=10).encode()

    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{compose_stack.ports['gateway']}/healthz")
    assert shown() == before.certificate.cert
    began = compose_stack.inspect()["gateway"]["State"]["StartedAt"]
    renewed = Pair.make()
    renewed.put(compose_stack.tls_folder)
    wait_until(lambda: shown() == renewed.cert, "the new certificate", 30)
    assert compose_stack.inspect()["gateway"]["State"]["StartedAt"] == began


def test_what_was_saved_can_be_put_back(compose_stack: ComposeStack, tmp_path: Path) -> None:
    """Databases and the bucket: what was lost since the backup is there again, what is newer is gone."""
    saved = tmp_path / "saved"
    with compose_stack.mlflow() as mlflow:
        create_experiment(mlflow, "kept")
        mlflow.put(ARTIFACT, content=KEPT).raise_for_status()
        compose_stack.run(str(ROOT / "infra" / "compose" / "backup.sh"), str(saved))
        assert {oct(os.stat(path).st_mode & 0o777) for path in saved.iterdir()} == {"0o600"}

        create_experiment(mlflow, "newer")
        mlflow.delete(ARTIFACT).raise_for_status()
    compose_stack.run(str(ROOT / "infra" / "compose" / "restore.sh"), str(saved))
    with compose_stack.mlflow() as mlflow:
        answer = mlflow.get("/api/2.0/mlflow/experiments/search", params={"max_results": 100}).json()
        names = {found["name"] for found in answer["experiments"]}
        assert "kept" in names
        assert "newer" not in names
        assert mlflow.get(ARTIFACT).content == KEPT


def create_experiment(mlflow: httpx.Client, name: str) -> None:
    mlflow.post("/api/2.0/mlflow/experiments/create", json={"name": name}).raise_for_status()
