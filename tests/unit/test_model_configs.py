"""A model's sizes are read from its config.json, wherever that lies."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx2
import huggingface_hub
import pytest

from pipeline import artifacts
from pipeline.artifacts.digests import folder_digest
from pipeline.artifacts.uris import file_uri
from pipeline.contracts.base import FolderRef, ModelRef
from pipeline.contracts.recipe import BaseModelSource, InitModel
from pipeline.contracts.specs import HubModel
from pipeline.errors import SpecError, TransientError
from pipeline.model_configs import base_shape, is_near, named_shape, pinned_shape
from pipeline.planning.shapes import UnknownShape
from tests.artifact_samples import manifest_of

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 1000,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder without weights."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def test_a_folder_a_new_model_and_a_pinned_folder_are_read(folder: Path) -> None:
    """No weights are needed."""
    assert base_shape(BaseModelSource(uri=str(folder))).vocab_size == 1000
    assert base_shape(BaseModelSource(init=InitModel(vocab_size=500))).vocab_size == 500
    pinned = FolderRef(uri=file_uri(folder), digest=folder_digest(folder))
    assert pinned_shape(pinned) == named_shape(str(folder))


def test_a_teacher_in_an_artifact_is_read_below_its_root(folder: Path, tmp_path: Path) -> None:
    """Of the version that the plan has pinned."""
    staged = tmp_path / "staged"
    (staged / "merged").mkdir(parents=True)
    (staged / "merged" / "config.json").write_text(json.dumps(CONFIG))
    manifest = manifest_of(staged)
    uri = f"{file_uri(tmp_path / 'store')}/{manifest.step}/{manifest.key}"
    ref = artifacts.publish(uri, staged, manifest).ref(uri)

    assert pinned_shape(ModelRef(artifact=ref, path="merged")).num_layers == 2


def hub_that(monkeypatch: pytest.MonkeyPatch, answers: Callable[[httpx2.Request], httpx2.Response]) -> None:
    """The hub's own client, whose requests end here."""
    client = httpx2.Client(transport=httpx2.MockTransport(answers))
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: client)


def test_a_hub_model_is_read_at_its_commit_in_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config alone is fetched."""
    asked: list[str] = []

    def answers(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.path)
        return httpx2.Response(200, json=CONFIG)

    hub_that(monkeypatch, answers)
    assert pinned_shape(HubModel(name="org/large", revision="a" * 40)).hidden_size == 64
    assert asked == [f"/org/large/resolve/{'a' * 40}/config.json"]


@pytest.mark.parametrize("code", ["RepoNotFound", "RevisionNotFound", "EntryNotFound"])
def test_a_hub_without_the_model_is_asked_no_more(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe is wrong."""
    hub_that(monkeypatch, lambda request: httpx2.Response(404, headers={"X-Error-Code": code}, request=request))
    with pytest.raises(SpecError, match=r"the hub has no config.json of 'org/none' \(revision main\)"):
        named_shape("org/none")


def test_a_hub_that_does_not_answer_may_do_so_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or is broken for now."""

    def refuses(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("no network", request=request)

    for answers in (refuses, lambda request: httpx2.Response(503, request=request)):
        hub_that(monkeypatch, answers)
        with pytest.raises(TransientError, match=r"cannot ask the hub for org/name/config\.json"):
            named_shape("org/name")


def test_what_is_no_config_is_refused_by_its_path(folder: Path) -> None:
    """Also one that is missing."""
    (folder / "config.json").write_text("[]")
    with pytest.raises(UnknownShape, match=r"model/config.json holds list, expected an object"):
        named_shape(str(folder))
    (folder / "config.json").write_text("config")
    with pytest.raises(UnknownShape, match=r"model/config.json is no JSON"):
        named_shape(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(SpecError, match=r"model/config.json cannot be read"):
        named_shape(str(folder))


def test_a_registered_teacher_is_left_to_the_release(tmp_path: Path) -> None:
    """Which knows MLflow; a person may name the folder."""
    with pytest.raises(SpecError, match=r"--set finetune.distill.teacher=/models/large"):
        named_shape("models:/large@champion")


@pytest.mark.parametrize(
    ("uri", "near"),
    [
        (None, True),
        ("/models/a", True),
        ("file:///a", True),
        ("s3://b/a", False),
        ("org/a", False),
        ("models:/a/1", False),
    ],
)
def test_what_needs_a_network_is_known_by_its_name(uri: str | None, near: bool) -> None:
    """`slipway validate` asks nobody."""
    assert is_near(uri) is near
