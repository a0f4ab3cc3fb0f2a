"""What the agent does with the containers of replicas that it finds at its start."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.contracts.rollout import Rollout
from pipeline.fleet.state import Replica
from pipeline.fleet.vllm import ReplicaPlan
from pipeline.settings import load
from slipway_airflow.agent import replica_containers
from slipway_airflow.agent.replica_containers import LABEL, PLAN_LABEL, ReplicaContainers
from slipway_airflow.agent.vocabulary import REPLICA_PORT

NAME = "replica-tiny-v1-g1-0"


@pytest.mark.parametrize(("status", "left_alone"), [("running", True), ("restarting", True), ("exited", False)])
def test_a_new_release_leaves_replicas_alone_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, left_alone: bool
) -> None:
    """It reads more out of a plan than the release that started the container: all of them would end at once."""
    done: list[str] = []
    container: Any = SimpleNamespace(
        name=f"slipway-{NAME}",
        labels={LABEL: NAME, PLAN_LABEL: "as the release before wrote it"},
        status=status,
        remove=lambda *, force: done.append("removed"),
        start=lambda: done.append("started"),
    )
    engine = SimpleNamespace(containers=SimpleNamespace(get=lambda name: container))
    monkeypatch.setattr(replica_containers, "connect", lambda: engine)
    environ = {"SLIPWAY_DOCKER_FLEET_NETWORK": "fleet", "SLIPWAY_DOCKER_VOLUME": "home"}
    replicas = ReplicaContainers(load({**environ, "SLIPWAY_HOME": str(tmp_path)}))
    monkeypatch.setattr(replicas, "_create", lambda plan, digest: container)
    replicas.plans_path.mkdir(parents=True)
    plan = ReplicaPlan(
        replica=Replica(id=NAME, host="10.0.0.9", port=REPLICA_PORT),
        model="tiny",
        version="1",
        generation=1,
        bundle_path=replicas.settings.cache_path / "bundle",
        settings=Rollout(),
        core=0,
    )
    (replicas.plans_path / f"{NAME}.json").write_text(plan.model_dump_json())
    assert replicas.restore() == []
    assert done == ([] if left_alone else ["removed", "started"])
