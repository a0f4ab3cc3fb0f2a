"""How a deployment is given its replicas."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline import settings
from pipeline.contracts.rollout import Rollout
from pipeline.errors import ReplicaFailed
from pipeline.fleet import replicas
from pipeline.fleet.autoscaling.__main__ import fleet_of
from pipeline.fleet.parts import Fleet
from pipeline.fleet.probes import Answer
from pipeline.fleet.starting import _with_starting, serve
from pipeline.fleet.state import Deployment, ModelFleet, Replica
from pipeline.fleet.vllm import ReplicaPlan
from pipeline.stack.layout import Layout

HAS = Deployment(
    version="1", generation=1, bundle_digest="1" * 64, replicas=(Replica(id="r-0", port=20_000),), num_wanted=3
)
MODEL = ModelFleet(name="m", generation=1, deployments=(HAS,))


def grown(model: ModelFleet, *, wanted: int, at_most: int) -> ModelFleet:
    fleet = SimpleNamespace(
        gateway=SimpleNamespace(models=dict),
        layout=SimpleNamespace(ports=lambda: SimpleNamespace(regions={})),
        replicas=SimpleNamespace(
            places=lambda count, taken: [("127.0.0.1", 21_000 + len(taken) + more) for more in range(count)]
        ),
    )
    source = SimpleNamespace(registered=SimpleNamespace(name="m", version="1"), generation=1)
    return partial(_with_starting, cast(Any, fleet), cast(Any, source), wanted, at_most)(model)


def num_replicas(model: ModelFleet) -> int:
    return sum(len(found.replicas) for found in model.deployments)


def test_two_who_mend_a_deployment_add_what_it_lacks_once() -> None:
    """A rollback and the autoscaler, say: both have seen that it is short."""
    once = grown(MODEL, wanted=3, at_most=3)
    assert num_replicas(once) == 3
    assert grown(once, wanted=3, at_most=3) == once


def test_where_places_are_few_one_is_added_at_a_time() -> None:
    """And none when all are there."""
    assert num_replicas(grown(MODEL, wanted=3, at_most=1)) == 2
    assert grown(MODEL, wanted=1, at_most=1) == MODEL


def test_a_new_replica_does_not_wait_for_an_old_one_that_is_down() -> None:
    """More are started just because the others cannot do the work."""
    second = Replica(id="r-1", port=20_001, use="starting")
    short = HAS.model_copy(update={"replicas": (*HAS.replicas, second)})
    model = ModelFleet(name="m", generation=1, deployments=(short,))
    fleet = SimpleNamespace(
        change=lambda name, by, change: change(model),
        gateway=SimpleNamespace(
            healthy=lambda: {HAS.replicas[0].address: False, second.address: True},
            wait=lambda condition, timeout_s: condition(),
            folder="gateway",
        ),
        all_healthy=lambda found: Fleet.all_healthy(cast(Any, fleet), found),
    )
    serve(cast(Any, fleet), "m", 1, {"r-1"}, by=1)
    with pytest.raises(ReplicaFailed, match="does not find every replica"):
        serve(cast(Any, fleet), "m", 1, set(), by=1)


def test_an_autoscaler_that_waits_for_a_slow_replica_gives_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica may take longer to be ready than a program may be silent (`container_check`)."""
    layout = Layout(tmp_path)
    layout.create()
    layout.choose_ports()
    environ = {"SLIPWAY_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    fleet = fleet_of(settings.load(environ))
    states = SimpleNamespace(state="RUNNING", pid=1)
    host = SimpleNamespace(put=lambda plan: None, states=lambda: {"r-0": states}, log_of=str)
    fleet.replicas.host, fleet.replicas.poll_s = cast(Any, host), 0.0
    alive, signs = tmp_path / "fleet" / "autoscaler" / "alive", []

    def loading(plan: ReplicaPlan) -> Answer:
        signs.append(alive.exists())
        alive.unlink(missing_ok=True)
        return Answer(failure="not yet" if len(signs) < 3 else "")

    monkeypatch.setattr(replicas, "ask_replica", loading)
    plan = ReplicaPlan(
        replica=HAS.replicas[0],
        model="m",
        version="1",
        generation=1,
        bundle_path=tmp_path,
        settings=Rollout(),
        core=0,
    )
    fleet.replicas.start([plan], lambda: True)
    assert signs == [True, True, True]
