"""The plan step: a checked recipe, and every input pinned."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from pipeline import artifacts, settings
from pipeline.artifacts.digests import file_digest, folder_digest
from pipeline.artifacts.uris import file_uri
from pipeline.contracts.base import ArtifactRef, FolderRef, step_key
from pipeline.contracts.release import finetune_spec
from pipeline.contracts.specs import PlanResult, PlanSpec
from pipeline.errors import IntegrityError, SpecError, TransientError
from pipeline.job import Job
from pipeline.steps import plan


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model's config.json comes from the hub, whether there is a network or not."""

    def refuses(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("no network", request=request)

    client = httpx2.Client(transport=httpx2.MockTransport(refuses))
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: client)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with rows, a suite and a base model."""
    folder = tmp_path / "in puts"
    (folder / "model").mkdir(parents=True)
    for name in ("train.jsonl", "eval.jsonl", "suite.json", "model/config.json", "model/model.safetensors"):
        (folder / name).write_text(f"{name}\n")
    return folder


def recipe(inputs: Path, **changed: Any) -> dict[str, Any]:
    """Fields of a recipe that names all four."""
    return {
        "name": "bank",
        "dataset": {"uri": str(inputs / "train.jsonl"), "eval_uri": file_uri(inputs / "eval.jsonl")},
        "base_model": {"uri": str(inputs / "model")},
        "validation": {"suite_uri": str(inputs / "suite.json")},
        **changed,
    }


def run(tmp_path: Path, fields: dict[str, Any]) -> tuple[PlanResult, Job]:
    """The step as the entry point runs it."""
    job = Job(
        step="plan",
        key="0" * 64,
        out_uri=f"{file_uri(tmp_path / 'store')}/plan/{'0' * 64}",
        settings=settings.load({"SLIPWAY_HOME": str(tmp_path / "home")}),
    )
    job.clear_staging()
    return plan.run(PlanSpec(recipe=fields, request_id="test"), job), job


def test_every_input_is_pinned_by_its_digest(inputs: Path, tmp_path: Path) -> None:
    """And later steps can fetch each by that reference."""
    planned, job = run(tmp_path, recipe(inputs))

    assert planned.train.digest == file_digest(inputs / "train.jsonl")
    assert planned.train.size_bytes == (inputs / "train.jsonl").stat().st_size
    assert planned.base_model is not None
    assert planned.base_model.digest == folder_digest(inputs / "model")
    assert planned.suite is not None
    assert job.fetch_file(planned.eval) == inputs / "eval.jsonl"
    assert job.fetch_file(planned.suite) == inputs / "suite.json"
    assert job.fetch_folder(planned.base_model) == inputs / "model"


def test_the_checked_recipe_is_kept_with_every_default(inputs: Path, tmp_path: Path) -> None:
    """So that a release can be read without the code that made it."""
    planned, job = run(tmp_path, recipe(inputs))

    kept = json.loads((job.staging_path / "recipe.json").read_text())
    assert kept == planned.recipe.model_dump(mode="json")
    assert kept["finetune"]["nodes"] == 2


def test_a_wrong_recipe_is_refused(inputs: Path, tmp_path: Path) -> None:
    """With the same words as `slipway validate`."""
    with pytest.raises(SpecError, match=r"finetune.epochs: -1 is not allowed"):
        run(tmp_path, recipe(inputs, finetune={"epochs": -1}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dataset": {"uri": "/gone.jsonl", "eval_uri": "/x.jsonl"}}, r"dataset.uri: /gone.jsonl does not exist; corr"),
        ({"dataset": {"uri": "IN", "eval_uri": "/x.jsonl"}}, "dataset.uri is IN, expected a file that ends in .jsonl"),
        ({"dataset": {"uri": "x.jsonl", "eval_uri": "/x.jsonl"}}, "dataset.uri: 'x.jsonl' is a relative path"),
        ({"dataset": {"uri": "http://x/a.jsonl", "eval_uri": "/x.jsonl"}}, "is of an unknown kind"),
        ({"base_model": {"uri": "/gone"}}, "base_model.uri: /gone holds no model: config.json and"),
        ({"base_model": {"uri": "/gone", "revision": "main"}}, "base_model.revision is 'main', but /gone is a folder"),
        ({"validation": {"suite_uri": "/gone.json"}}, "validation.suite_uri: /gone.json does not exist"),
    ],
)
def test_a_missing_input_is_named_by_field_and_path(
    changed: dict[str, Any], message: str, inputs: Path, tmp_path: Path
) -> None:
    """With what to do."""
    with pytest.raises(SpecError, match=message):
        run(tmp_path, recipe(inputs, **changed))


def test_a_folder_in_the_place_of_a_file_is_refused(inputs: Path, tmp_path: Path) -> None:
    """Even where its name ends like one."""
    (inputs / "rows.jsonl").mkdir()
    dataset = {"uri": str(inputs / "rows.jsonl"), "eval_uri": str(inputs / "eval.jsonl")}

    with pytest.raises(SpecError, match=r"rows.jsonl is a folder"):
        run(tmp_path, recipe(inputs, dataset=dataset))


def test_an_input_that_changes_after_the_plan_is_refused(inputs: Path, tmp_path: Path) -> None:
    """A release is of the bytes that were planned."""
    planned, job = run(tmp_path, recipe(inputs))
    (inputs / "train.jsonl").write_text("other\n")
    (inputs / "model" / "config.json").write_text("other\n")
    (inputs / "eval.jsonl").unlink()

    with pytest.raises(IntegrityError, match="has changed since the release was planned"):
        job.fetch_file(planned.train)
    with pytest.raises(IntegrityError, match="is gone since the release was planned"):
        job.fetch_file(planned.eval)
    assert planned.base_model is not None
    with pytest.raises(IntegrityError, match="has changed since the release was planned"):
        job.fetch_folder(planned.base_model)


def test_generated_data_is_an_artifact_that_the_next_plan_reuses(inputs: Path, tmp_path: Path) -> None:
    """The same settings, the same files at the same place; another seed, others."""
    small = {"kind": "support-intents", "train_rows": 200, "eval_rows": 60}
    first, job = run(tmp_path, recipe(inputs, dataset={"generate": small}))
    path = job.fetch_file(first.train)
    made_at = path.stat().st_mtime_ns

    again, _ = run(tmp_path, recipe(inputs, dataset={"generate": small}))
    other, _ = run(tmp_path, recipe(inputs, dataset={"generate": {**small, "seed": 8}}))

    assert again.train == first.train
    assert path.stat().st_mtime_ns == made_at
    assert other.train.digest != first.train.digest
    assert artifacts.find_manifest(first.train.uri.rsplit("/", 2)[0]) is not None
    assert len(path.read_text().splitlines()) == 200


def hub_that(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    """Puts a hub in place that answers, or fails, in one way."""

    def model_info(*_: object, **__: object) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)


def test_a_hub_model_is_pinned_to_the_commit_of_now(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its main branch may move before the next step reads it."""
    hub_that(monkeypatch, huggingface_hub.ModelInfo(id="org/name", sha="c0" * 20))

    planned, _ = run(tmp_path, recipe(inputs, base_model={"uri": "org/name"}))

    assert planned.base_model is None
    assert planned.recipe.base_model.revision == "c0" * 20


def test_a_hub_model_with_a_commit_needs_no_hub(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan works without a network where the recipe leaves nothing open."""
    hub_that(monkeypatch, AssertionError("the hub was asked"))

    planned, _ = run(tmp_path, recipe(inputs, base_model={"uri": "org/name", "revision": "ab" * 20}))

    assert planned.recipe.base_model.revision == "ab" * 20


def test_an_unreachable_hub_is_transient_and_an_unknown_model_is_not(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both say what to do."""
    fields = recipe(inputs, base_model={"uri": "org/name"})
    hub_that(monkeypatch, httpx2.ConnectError("no network"))
    with pytest.raises(TransientError, match=r"no network.*download the model elsewhere and give its folder"):
        run(tmp_path, fields)

    response = httpx2.Response(404, request=httpx2.Request("GET", "https://hub.invalid"))
    hub_that(monkeypatch, RepositoryNotFoundError("gone", response=response))
    with pytest.raises(SpecError, match=r"the hub has no model 'org/name'.*write \./org/name if a folder is meant"):
        run(tmp_path, fields)


def test_a_link_to_a_model_folder_of_the_hubs_cache_is_pinned_by_content(inputs: Path, tmp_path: Path) -> None:
    """There, files are links to blobs."""
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for name in ("config.json", "model.safetensors"):
        os.symlink(inputs / "model" / name, linked / name)

    planned, _ = run(tmp_path, recipe(inputs, base_model={"uri": str(linked)}))

    assert planned.base_model is not None
    assert planned.base_model.digest == folder_digest(inputs / "model")


def test_a_teacher_is_pinned_by_its_digest_and_the_key_forgets_where_it_lies(inputs: Path, tmp_path: Path) -> None:
    """Two folders with the same bytes are the same teacher."""
    shutil.copytree(inputs / "model", tmp_path / "elsewhere")
    specs = []
    for teacher in (inputs / "model", tmp_path / "elsewhere"):
        finetune = {"method": "distill", "distill": {"teacher": str(teacher)}}
        planned, _ = run(tmp_path, recipe(inputs, finetune=finetune))
        assert planned.teacher == FolderRef(uri=file_uri(teacher), digest=folder_digest(teacher))
        dataset = ArtifactRef(uri=file_uri(tmp_path / "validate"), digest="0" * 64)
        specs.append(step_key("finetune", 1, finetune_spec(planned, dataset)))
    assert specs[0] == specs[1]


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ("/nowhere/at/all", "finetune.distill.teacher: /nowhere/at/all holds no model"),
        ("models:/Large Model", "finetune.distill.teacher is 'models:/Large Model', expected models:/NAME@ALIAS"),
    ],
)
def test_a_teacher_that_is_not_there_is_refused_by_its_field(
    inputs: Path, tmp_path: Path, teacher: str, said: str
) -> None:
    """Before anything is trained."""
    finetune = {"method": "distill", "distill": {"teacher": teacher}}
    with pytest.raises(SpecError) as caught:
        run(tmp_path, recipe(inputs, finetune=finetune))
    assert said in str(caught.value)


INIT = {"hidden_size": 2048, "intermediate_size": 8192, "num_layers": 16, "num_heads": 16, "num_kv_heads": 16}


def test_auto_is_replaced_by_what_was_chosen(inputs: Path, tmp_path: Path) -> None:
    """Everything later sees fixed values; the forecast is kept with the plan."""
    fields = recipe(inputs, base_model={"init": {}}, finetune={"parallelism": "auto"})
    planned, job = run(tmp_path, fields)

    assert not planned.recipe.finetune.parallelism.auto
    assert json.loads((job.staging_path / "recipe.json").read_text())["finetune"]["parallelism"]["auto"] is False
    chosen = planned.recipe.finetune.parallelism
    assert job.figures["forecast"]["parallelism"]["zero"] == chosen.zero


def test_a_training_that_does_not_fit_is_refused_before_it_is_queued(inputs: Path, tmp_path: Path) -> None:
    """With the figures."""
    with pytest.raises(SpecError, match=r"a node needs [\d.]+ GB for 1 rank, and may take 8 GB"):
        run(tmp_path, recipe(inputs, base_model={"init": INIT}))


def test_a_model_that_cannot_be_counted_is_planned_without_a_forecast(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the log says so; a choice is refused."""
    (inputs / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    run(tmp_path, recipe(inputs))
    assert "no forecast of fine-tuning: " in capsys.readouterr().out

    with pytest.raises(SpecError, match="whose memory cannot be planned"):
        run(tmp_path, recipe(inputs, finetune={"parallelism": "auto"}))
