"""What the agent refuses, whoever asks."""

from pathlib import Path

import pytest

from pipeline import settings
from pipeline.contracts.rollout import Rollout
from pipeline.errors import SpecError
from pipeline.fleet.state import Replica
from pipeline.fleet.vllm import ReplicaPlan
from pipeline.settings import Settings
from slipway_airflow.agent.vocabulary import check_name, check_plan, check_request
from slipway_airflow.backends.base import Claim, JobRequest

OUT = "s3://bucket/store/validate/key"


@pytest.fixture
def configured(tmp_path: Path) -> Settings:
    return settings.load({"SLIPWAY_HOME": str(tmp_path), "SLIPWAY_STORE": "s3://bucket/store"})


def request(**changes: object) -> JobRequest:
    fields: dict[str, object] = {
        "job_id": "validate-1",
        "environment": "control",
        "arguments": ("-m", "pipeline", "validate", "--spec", "{spec}", "--out", OUT),
        "spec": "{}",
        "deadline_s": 60,
        "claim": Claim(holder="run/task", token="one"),
        "variables": {"SLIPWAY_RELEASE": "demo"},
        **changes,
    }
    return JobRequest.model_validate(fields)


def plan(tmp_path: Path, **changes: object) -> ReplicaPlan:
    fields: dict[str, object] = {
        "replica": Replica(id="replica-demo-v1-g1-0", host="10.0.0.9", port=8000),
        "model": "demo",
        "version": "1",
        "generation": 1,
        "bundle_path": tmp_path / "cache" / "abc",
        "settings": Rollout(),
        "core": 0,
        **changes,
    }
    return ReplicaPlan.model_validate(fields)


def test_a_step_is_let_through(configured: Settings) -> None:
    """In the form in which the operator asks for it."""
    check_request(request(), configured)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arguments": ("-c", "import os")}, "runs steps"),
        ({"labels": {"replica": "replica-demo-v1-g1-0"}}, r"no labels \['replica'\]"),
        ({"arguments": ("-m", "pipeline", "validate", "--spec", "{spec}", "--out", OUT, "x")}, "runs steps"),
        ({"arguments": ("-m", "pipeline", "evil", "--spec", "{spec}", "--out", OUT)}, "runs steps"),
        ({"environment": "model"}, "runs in control"),
        (
            {"arguments": ("-m", "pipeline", "validate", "--spec", "{spec}", "--out", "s3://other/validate/key")},
            "below s3://bucket/store/validate",
        ),
        ({"variables": {"LD_PRELOAD": "/x.so"}}, "LD_PRELOAD"),
    ],
)
def test_any_other_program_is_refused(configured: Settings, changes: dict[str, object], told: str) -> None:
    """By name of what is not allowed."""
    with pytest.raises(SpecError, match=told):
        check_request(request(**changes), configured)


def test_a_replica_of_a_fetched_bundle_is_let_through(configured: Settings, tmp_path: Path) -> None:
    """In the form in which a rollout asks for it."""
    check_plan("replica-demo-v1-g1-0", plan(tmp_path), configured)


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("replica-demo-v1-g1-1", {}, "expected the same name"),
        ("evil", {"replica": Replica(id="evil", host="10.0.0.9", port=8000)}, "no replica's name"),
        (
            "replica-demo-v1-g1-0",
            {"replica": Replica(id="replica-demo-v1-g1-0", host="10.0.0.9", port=22)},
            "expected 8000",
        ),
        ("replica-demo-v1-g1-0", {"bundle_path": Path("/etc")}, "outside"),
    ],
)
def test_any_other_replica_is_refused(
    configured: Settings, tmp_path: Path, name: str, changes: dict[str, object], told: str
) -> None:
    """Names, ports and bundles are those that a rollout gives."""
    with pytest.raises(SpecError, match=told):
        check_plan(name, plan(tmp_path, **changes), configured)


def test_a_bundle_that_climbs_out_of_the_cache_is_refused(configured: Settings, tmp_path: Path) -> None:
    """Whatever its path looks like at first."""
    with pytest.raises(SpecError, match="outside"):
        check_plan("replica-demo-v1-g1-0", plan(tmp_path, bundle_path=tmp_path / "cache" / ".." / "fleet"), configured)


@pytest.mark.parametrize("name", ["postgres-1", "replica-demo-v1-g1-0/../../postgres-1", "replica-demo-v1-g1-0\n", ""])
def test_only_replicas_are_ended(name: str) -> None:
    """Not the stack's own containers, whose names begin alike."""
    check_name("replica-demo-v1-g1-0")
    with pytest.raises(SpecError, match="no replica's name"):
        check_name(name)
