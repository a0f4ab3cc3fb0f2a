"""From an answer's request id to the digest of the data set: a real gateway, a real MLflow, stand-in replicas."""

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_rig import ROLLOUT, Rig
from typer.testing import CliRunner

from pipeline import artifacts, audit
from pipeline.audit.log import head_path, log_path
from pipeline.commands.app import app
from pipeline.contracts.specs import RegisterSpec, ValidateSpec
from pipeline.contracts.trace import Trace
from pipeline.fleet.operations import rollback
from pipeline.registry import promotion
from pipeline.registry.anchors import AUDIT_TAG, anchors
from pipeline.registry.models import Registry
from pipeline.trace import trace
from tests.integration.finished_release import FinishedRelease
from tests.integration.mlflow_server import MlflowServer

pytestmark = pytest.mark.integration

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Story:
    """Version 1, promoted by its release's gates, then version 2, promoted by ada, which serves."""

    def __init__(self, release: FinishedRelease, server: MlflowServer) -> None:
        self.release, self.server, self.name = release, server, release.recipe.name
        self.registry = Registry(server.uri, release.settings.home_path)
        self.rig = Rig(release.settings.home_path, quiet=True)
        self.rig.fleet.registry = self.registry
        self.specs: list[RegisterSpec] = []

    def tell(self) -> None:
        self.rig.up()
        first = self._register(seed=0)
        assert self.release.promote(self.release.promote_spec(self.release.registration(first))) == 0
        self.rig.follow("scheduled__1", self.name)
        self._register(seed=1)
        promotion.promote_by_hand(self.registry, name=self.name, version="2", promoted_by="ada", reason="newer data")
        self.rig.follow("scheduled__2", self.name)

    def _register(self, seed: int) -> RegisterSpec:
        spec = self.release.build([True] * 200, seed=seed)
        assert self.release.register(spec) == 0
        self.specs.append(spec)
        return spec

    def trace(self, request_id: str) -> Trace:
        return trace(self.rig.layout, request_id, self.server.uri)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, mlflow_server: MlflowServer) -> Iterator[Story]:
    settings = {**ROLLOUT, "replicas": 1, "steps": [100], "step_s": 1.0, "min_requests": 2}
    name = f"traced-{uuid.uuid4().hex[:12]}"
    release = FinishedRelease(tmp_path_factory.mktemp("traced") / "home", {"name": name, "rollout": settings})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIPWAY_HOME", str(release.settings.home_path))
        patch.setenv("SLIPWAY_STORE", release.settings.store_uri)
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
        patch.setenv("SLIPWAY_RELEASE", name)
        story = Story(release, mlflow_server)
        story.rig.layout.create()
        story.rig.layout.choose_ports({"mlflow": mlflow_server.port})
        try:
            story.tell()
            yield story
        finally:
            story.rig.supervisor.stop()


def test_a_request_leads_to_the_data_sets_digest(story: Story) -> None:
    """Through the replica, the rollout, the version, the runs, the recipe, the quantization and the report."""
    answer = story.rig.ask(story.name)
    assert (answer.headers["x-slipway-model"], answer.headers["x-slipway-version"]) == (story.name, "2")
    found = story.trace(answer.headers["x-request-id"])
    assert found.missing == ()
    assert (found.request.version, found.request.deployment, found.request.client) == ("2", 2, "client")
    assert str(found.request.deployment) == answer.headers["x-slipway-generation"]

    assert found.rollout is not None
    assert (found.rollout.generation, found.rollout.previous, found.rollout.outcome) == (2, "1", "promoted")
    assert (found.rollout.by, found.rollout.why) == ("ada", "newer data")
    assert found.rollout.url == f"{story.rig.layout.ports().url('airflow')}/dags/rollout/runs/scheduled__2"
    assert found.moment is not None
    assert found.moment.shares == {"version 2 (g2)": 100}

    registered = story.registry.get(story.name, "2")
    assert found.version is not None
    assert found.version.bundle_digest == registered.bundle_digest == found.rollout.bundle_digest
    assert found.version.url == f"{story.server.uri}/#/models/{story.name}/versions/2"
    runs = {run.step: run for run in found.runs}
    assert list(runs) == ["validate", "finetune", "evaluate_compressed", "register"]
    assert runs["register"].run_id == registered.run_id
    assert runs["register"].url
    assert runs["register"].url.endswith(f"/runs/{registered.run_id}")

    spec = story.specs[1]
    dataset = artifacts.read_manifest(spec.dataset)
    data = ValidateSpec.model_validate(dataset.spec)
    assert found.validation is not None
    assert found.validation.artifact_digest == registered.tags["slipway.dataset_digest"] == dataset.digest
    assert (found.validation.train_digest, found.validation.eval_digest) == (data.train.digest, data.eval.digest)
    assert found.recipe is not None
    assert found.recipe.digest == registered.tags["slipway.recipe_digest"]
    assert found.quantization is not None
    assert found.quantization.reason == registered.tags["slipway.scheme_reason"]


def test_the_log_says_who_promoted_what_and_why(story: Story) -> None:
    """The gates for the first version, a person for the second; MLflow keeps the log's digest at each."""
    told = [(entry.action, entry.actor, entry.version) for entry in audit.read_entries(story.rig.layout)]
    assert told[:6] == [
        ("promote", "policy auto", "1"),
        ("planned", "policy auto", "1"),
        ("ready", "rollout 1", "1"),
        ("moved", "rollout 1", "1"),
        ("promoted", "rollout 1", "1"),
        ("retired", "rollout 1", "1"),
    ]
    assert told[6:8] == [("promote", "ada", "2"), ("planned", "ada", "2")]
    kept = anchors(story.registry, {story.name})
    assert len(kept) == 2
    assert anchors(story.registry, {"another fleet's"}) == []
    assert audit.verify(story.rig.layout, kept).whole


def test_every_answer_has_a_request_id_of_the_gateways_own(story: Story) -> None:
    """Refusals too; one that a client sends is replaced, so that no client can pass for another's request."""
    mine = "11111111-2222-4333-8444-555555555555"
    asked = [
        (200, story.rig.ask(story.name)),
        (200, story.rig.ask(story.name, **{"x-request-id": mine})),
        (401, story.rig.ask(story.name, key="wrong")),
        (404, story.rig.ask("unheard-of")),
    ]
    ids = [answer.headers["x-request-id"] for _, answer in asked]
    assert all(UUID.fullmatch(found) for found in ids)
    assert len({*ids, mine}) == 5
    assert [story.trace(found).request.status for found in ids] == [status for status, _ in asked]
    refused = story.trace(ids[2])
    assert refused.missing[0].startswith("no replica answered (status 401")
    assert refused.request.client is None


def test_the_command_shows_a_trace_and_says_what_is_unknown(story: Story) -> None:
    """With exit code 64 for an id that the logs do not hold."""
    request_id = story.rig.ask(story.name).headers["x-request-id"]
    said = CliRunner().invoke(app, ["trace", request_id], catch_exceptions=False)
    assert said.exit_code == 0
    for expected in ("ada: newer data", "version 2, deployment 2", story.trace(request_id).validation.train_digest):
        assert expected in said.output
    as_json = CliRunner().invoke(app, ["trace", request_id, "--json"], catch_exceptions=False)
    assert Trace.model_validate_json(as_json.output) == story.trace(request_id)
    unknown = CliRunner().invoke(app, ["trace", "11111111-2222-4333-8444-555555555555"])
    assert "no request 11111111" in str(unknown.exception)


def test_a_trace_goes_as_far_as_it_can_when_an_artifact_is_gone(story: Story) -> None:
    """And names what is missing."""
    request_id = story.rig.ask(story.name).headers["x-request-id"]
    manifest = Path(story.specs[1].dataset.uri.removeprefix("file://")) / "manifest.json"
    aside = manifest.rename(manifest.with_name("aside.json"))
    try:
        found = story.trace(request_id)
    finally:
        aside.rename(manifest)
    assert found.version is not None
    assert found.validation is None
    assert len(found.missing) == 1
    assert found.missing[0].startswith("the lineage: ")
    assert story.specs[1].dataset.uri in found.missing[0]


def test_a_forged_log_is_told_by_what_mlflow_keeps(story: Story) -> None:
    """Its own chain and head are in order."""
    paths = (log_path(story.rig.layout), head_path(story.rig.layout))
    kept = [path.read_bytes() for path in paths]
    assert "entries are as they were written, and as 2 digests" in CliRunner().invoke(app, ["audit", "--verify"]).output
    entries = list(audit.read_entries(story.rig.layout))
    for path in paths:
        path.unlink()
    try:
        for entry in entries:
            forged = entry.model_copy(update={"actor": "nobody"}).model_dump()
            audit.record(story.rig.layout, **{name: forged[name] for name in ("action", "actor", "model", "version")})
        assert audit.verify(story.rig.layout).whole
        said = CliRunner().invoke(app, ["audit", "--verify"])
        assert "the log was replaced" in str(said.exception)
        assert f"{story.name} version 1 in MLflow" in str(said.exception)
    finally:
        for path, data in zip(paths, kept, strict=True):
            path.write_bytes(data)
    assert AUDIT_TAG in story.registry.summary(story.name, "1").tags


def test_a_rollback_names_who_asked_and_why(story: Story) -> None:
    """In the log, and as the rollout's own `by`, so that the trace of its answers says it."""
    done = rollback(story.rig.layout, story.name, story.registry, by="grace", reason="answers in riddles")
    assert (done.version, done.immediate) == ("1", False)
    story.rig.follow("scheduled__3", story.name)
    said = CliRunner().invoke(app, ["audit", story.name, "--action", "rollback", "--json"])
    entry = json.loads(said.output)
    assert (entry["actor"], entry["reason"], entry["details"]) == (
        "grace",
        "answers in riddles",
        {"from": "2", "to": "1"},
    )
    found = story.trace(story.rig.ask(story.name).headers["x-request-id"])
    assert found.rollout is not None
    assert (found.rollout.generation, found.rollout.by, found.rollout.why) == (3, "grace", "answers in riddles")
