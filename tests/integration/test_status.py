"""What `slipway status` says of the champions, with a real MLflow and without one."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.commands import status
from pipeline.stack import loopback
from pipeline.stack.layout import Layout
from tests.integration.mlflow_server import MlflowServer, free_port

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def closed_client() -> Iterator[None]:
    """The commands leave theirs to the end of their process."""
    yield
    loopback.client().close()
    loopback.client.cache_clear()


def layout(home_path: Path, mlflow_port: int) -> Layout:
    made = Layout(home_path)
    made.create()
    made.choose_ports({"mlflow": mlflow_port})
    made.ensure_credentials()
    return made


def test_the_champion_is_the_registrys(tmp_path: Path, mlflow_server: MlflowServer) -> None:
    """And a model without one has none."""
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server.uri, mlflow_server.uri)
    chosen, open_ = (f"{kind}-{uuid.uuid4().hex[:8]}" for kind in ("chosen", "open"))
    run = client.create_run("0").info
    for name in (chosen, open_):
        client.create_registered_model(name)
        client.create_model_version(name, f"{run.artifact_uri}/bundle", run.run_id)
    client.set_registered_model_alias(chosen, "champion", "1")
    found = status.collect(layout(tmp_path, mlflow_server.port))
    assert found["champions_known"]
    assert found["models"][chosen]["champion"] == {"name": chosen, "version": "1"}
    assert found["models"][open_]["champion"] is None


def test_while_mlflow_is_away_the_champion_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which is not the same as none."""
    found = status.collect(layout(tmp_path, free_port()))
    assert not found["champions_known"]
    found["models"] = {"intents": {"champion": None, "serving": None, "canary": None, "replicas": []}}
    status.show_tables(found)
    said = capsys.readouterr().out
    assert "intents  champion not known, serving nothing" in said
    assert "MLflow does not answer" in said
