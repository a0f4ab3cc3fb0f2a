"""The register step against a real MLflow server."""

import multiprocessing
import signal
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline import artifacts
from pipeline.artifacts.digests import folder_digest
from pipeline.contracts.base import ModelRef
from pipeline.errors import IntegrityError, SpecError
from pipeline.registry.models import Registry, finetuned_model
from tests.integration.finished_release import FinishedRelease
from tests.integration.mlflow_server import MlflowServer

pytestmark = pytest.mark.integration

GOOD = [True] * 90 + [False] * 10


def test_a_registered_version_names_its_bundle_by_digest(finished_release: FinishedRelease, registry: Registry) -> None:
    """The registry answers with everything that serving needs."""
    spec = finished_release.build(GOOD)
    assert finished_release.register(spec) == 0
    version = registry.get(finished_release.recipe.name, "1")
    assert version.bundle == spec.bundle
    assert version.recipe == finished_release.recipe
    assert version.registration == finished_release.registration(spec)
    bundle = artifacts.fetch(spec.bundle.artifact, finished_release.settings.cache_path) / spec.bundle.path
    assert version.bundle_digest == folder_digest(bundle)


def test_mlflow_shows_scores_lineage_card_and_data(
    finished_release: FinishedRelease, registry: Registry, mlflow_server: MlflowServer
) -> None:
    """What a person reads in MLflow: tags, description, metrics, artifacts, and the data as inputs."""
    spec = finished_release.build(GOOD)
    assert finished_release.register(spec) == 0
    client = MlflowClient(mlflow_server.uri, mlflow_server.uri)
    version = client.get_model_version(finished_release.recipe.name, "1")
    assert version.tags["slipway.score"] == "0.9000 [0.8500, 0.9500]"
    assert version.tags["slipway.scheme"] == "w8a8"
    assert version.tags["slipway.recovery"] == "1.0000 [0.9900, 1.0100]"
    assert version.tags["slipway.dataset_digest"] == spec.dataset.digest
    assert "## How to call it" in version.description
    assert version.source.endswith("/artifacts/model")
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["released/exact_match"] == 0.9
    assert run.data.metrics["evaluate/rows_per_s"] == 12.5
    assert run.data.metrics["trial_w8a8/recovery_low"] == 0.99
    assert {entry.tags[0].value for entry in run.inputs.dataset_inputs} == {"training", "evaluation"}
    files = {entry.path for entry in client.list_artifacts(version.run_id, "model")}
    assert files == {"model/model_card.md", "model/bundle.json", "model/recipe.json"}


def test_the_same_spec_registers_once_even_after_a_crash(
    finished_release: FinishedRelease, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that dies between the version and its artifact finds the version again, in the same MLflow run."""
    spec = finished_release.build(GOOD)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(artifacts, "publish", crash)
        with pytest.raises(KeyboardInterrupt):
            finished_release.register(spec)
    (before,) = registry.versions(finished_release.recipe.name)
    with pytest.raises(IntegrityError, match=r"manifest\.json is missing"):
        registry.get(finished_release.recipe.name, before.version)
    assert finished_release.register(spec) == 0
    (after,) = registry.versions(finished_release.recipe.name)
    assert after == before
    assert registry.get(finished_release.recipe.name, "1").run_id == before.run_id


def test_a_changed_byte_in_the_bundle_is_refused(
    finished_release: FinishedRelease, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 65, and nothing is registered."""
    spec = finished_release.build(GOOD)
    weights = artifacts.fetch(spec.bundle.artifact, finished_release.settings.cache_path) / "w8a8" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert finished_release.register(spec) == 65
    assert "model.safetensors was altered" in capsys.readouterr().err
    assert registry.versions(finished_release.recipe.name) == []


def test_a_pickle_in_the_bundle_is_refused_by_name(
    finished_release: FinishedRelease, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 65, and the message names the file."""
    assert finished_release.register(finished_release.build(GOOD, pickle=True)) == 65
    assert "optimizer.pt may not stand in a model bundle" in capsys.readouterr().err
    assert registry.versions(finished_release.recipe.name) == []


def test_registering_needs_mlflow(
    finished_release: FinishedRelease, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 64 and the name of the variable."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert finished_release.register(finished_release.build(GOOD)) == 64
    assert "MLFLOW_TRACKING_URI is not set" in capsys.readouterr().err


def test_registration_survives_a_frozen_server(
    finished_release: FinishedRelease, registry: Registry, mlflow_server: MlflowServer
) -> None:
    """MLflow that does not answer for a while delays the step and changes nothing."""
    spec = finished_release.build(GOOD)
    mlflow_server.signal(signal.SIGSTOP)
    thaw = threading.Timer(6.0, mlflow_server.signal, [signal.SIGCONT])
    thaw.start()
    try:
        assert finished_release.register(spec) == 0
    finally:
        thaw.cancel()
        mlflow_server.signal(signal.SIGCONT)
    assert [found.version for found in registry.versions(finished_release.recipe.name)] == ["1"]


def _create(uri: str, home: Path, name: str, source: tuple[str, str]) -> str:
    run_id, artifact_uri = source
    created = Registry(uri, home).create(
        name, key="the-same", source=artifact_uri, run_id=run_id, tags={}, description=""
    )
    return created.version


def test_two_processes_that_register_the_same_get_one_version(
    finished_release: FinishedRelease, registry: Registry, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    """Even on two machines, which share no lock: both agree on the older version and the other one goes."""
    client = MlflowClient(mlflow_server.uri, mlflow_server.uri)
    run = client.create_run(client.create_experiment(finished_release.recipe.name))
    source = (run.info.run_id, f"{run.info.artifact_uri}/model")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        homes = [tmp_path / "machine-a", tmp_path / "machine-b"]
        versions = pool.starmap(
            _create, [(mlflow_server.uri, home, finished_release.recipe.name, source) for home in homes], chunksize=1
        )
    assert len(set(versions)) == 1
    assert [found.version for found in registry.versions(finished_release.recipe.name)] == versions[:1]


def test_a_teacher_in_the_registry_is_pinned_as_its_unquantized_model(
    finished_release: FinishedRelease, registry: Registry
) -> None:
    """By version or alias; what the release quantized teaches nothing that it did not know before."""
    spec = finished_release.build(GOOD)
    assert finished_release.register(spec) == 0
    name = finished_release.recipe.name
    registry.set_alias(name, "champion", "1")
    for version in ("1", "@champion"):
        assert finetuned_model(registry.tracking_uri, name, version) == ModelRef(artifact=spec.finetuned)
    with pytest.raises(SpecError, match="has no alias teacher"):
        finetuned_model(registry.tracking_uri, name, "@teacher")


def test_an_unknown_version_is_answered_with_the_known_ones(
    finished_release: FinishedRelease, registry: Registry
) -> None:
    """The message lists what there is."""
    assert finished_release.register(finished_release.build(GOOD)) == 0
    with pytest.raises(SpecError, match=r"has no version 7 .* it has: 1"):
        registry.get(finished_release.recipe.name, "7")
