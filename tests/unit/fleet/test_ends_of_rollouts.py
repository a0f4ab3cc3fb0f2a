"""How rollouts end that were killed, lost a race, or did not get beyond their plan."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import audit
from pipeline.contracts.specs import RolloutResult, RolloutSpec
from pipeline.errors import DataError, TransientError
from pipeline.fleet import rollout as phases
from pipeline.fleet.parts import Fleet
from pipeline.fleet.rollout import run_phase
from pipeline.fleet.state import Deployment, ModelFleet, Replica, Rollout, Served
from pipeline.stack.layout import Layout

NAME = "m"


class Aliases:
    """A registry of versions that can all be served; `champion` moves by `compare_and_set_alias`."""

    def __init__(self, champion: str) -> None:
        self.champion: str | None = champion
        self.fault: Exception | None = None
        self.is_slow = False
        """Somebody else is faster."""

    def get(self, name: str, version: str) -> Any:
        if self.fault:
            raise self.fault
        settings = SimpleNamespace(ready_timeout_s=1.0, steps=(100,))
        return SimpleNamespace(name=name, version=version, recipe=SimpleNamespace(rollout=settings))

    def alias(self, name: str, alias: str) -> str | None:
        return self.champion if alias == "champion" else None

    def set_alias(self, name: str, alias: str, version: str) -> None: ...

    def compare_and_set_alias(self, name: str, alias: str, expected: str | None, version: str | None) -> bool:
        if self.is_slow:
            self.champion = "somebody's"
        if self.champion != expected:
            return False
        self.champion = version
        return True

    def tag(self, name: str, version: str, key: str, value: str) -> None: ...


def deployment(generation: int, version: str) -> Deployment:
    return Deployment(
        version=version,
        generation=generation,
        bundle_digest="1" * 64,
        replicas=(Replica(id=f"r-{generation}", port=20_000 + generation),),
        ready=True,
        routed=True,
    )


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """Version 1 serves; rollout 3 tries version 2 on the replicas that rollout 2 had started, which were warm still."""
    nothing: Any = None
    hosts: Any = SimpleNamespace(remove=lambda replicas, at_once=False: None)
    fleet = Fleet(
        layout=Layout(tmp_path),
        registry=Aliases(champion="2"),
        replicas=hosts,
        fetch_bundle=nothing,
        fetch_predictions=nothing,
        say=print,
    )
    for method, answer in {
        "apply": lambda: None,
        "rotate_access_log": lambda: None,
        "healthy": dict,
        "active_addresses": lambda model: set(),
        "wait": lambda condition, timeout_s: condition(),
    }.items():
        monkeypatch.setattr(fleet.gateway, method, answer)
    running = Rollout(generation=3, request_id="to-2", version="2", previous="1", started_at=0.0)
    fleet.files.write(
        ModelFleet(
            name=NAME,
            generation=3,
            serving=Served(version="1", generation=1, deployment=1),
            canary=Served(version="2", generation=3, deployment=2),
            weights={1: 75, 2: 25},
            shadow=50,
            deployments=(deployment(1, "1"), deployment(2, "2")),
            history=(running,),
        )
    )
    return fleet


def run(fleet: Fleet, phase: Any, generation: int = 0, request_id: str = "to-2", reason: str = "") -> RolloutResult:
    spec = RolloutSpec(name=NAME, generation=generation, phase=phase, request_id=request_id, reason=reason)
    return run_phase(spec, fleet)


def outcome(fleet: Fleet, generation: int) -> str:
    found = fleet.files.get(NAME).rollout(generation)
    assert found is not None
    return found.outcome


def test_a_rollback_that_is_killed_in_its_middle_removes_the_canary_when_it_is_repeated(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its replicas are those of an earlier rollout: the canary is forgotten by then."""

    def killed(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(phases, "_put_back", killed)
        with pytest.raises(KeyboardInterrupt):
            run(fleet, "roll_back", 3, reason="bad")
    assert [found.generation for found in fleet.files.get(NAME).deployments] == [1, 2]
    run(fleet, "roll_back", 3, reason="bad")
    assert [found.generation for found in fleet.files.get(NAME).deployments] == [1]


def test_where_there_is_no_canary_nobody_gets_copies(fleet: Fleet) -> None:
    """However it went: a trial as a shadow whose job was lost is rolled back, too."""
    run(fleet, "roll_back", 3, reason="bad")
    model = fleet.files.get(NAME)
    assert (model.canary, model.shadow) == (None, 0)


def test_a_champion_that_somebody_else_moved_meanwhile_is_not_said_to_be_put_back(fleet: Fleet) -> None:
    """The entry that was written first is followed by one that takes it back."""
    assert isinstance(fleet.registry, Aliases)
    fleet.registry.is_slow = True
    run(fleet, "roll_back", 3, reason="bad")
    told = [entry for entry in audit.read_entries(fleet.layout.home_path) if entry.action in ("put-back", "refused")]
    assert [(entry.action, entry.actor, entry.generation) for entry in told] == [
        ("put-back", "rollout 3", 3),
        ("refused", "rollout 3", 3),
    ]
    assert fleet.registry.champion == "somebody's"


@pytest.mark.parametrize("fault", [TransientError("MLflow is away"), DataError("not registered by Slipway")])
def test_a_rollout_whose_plan_fails_for_good_does_not_run_for_ever(fleet: Fleet, fault: Exception) -> None:
    """It was numbered already. It ends without traffic on its canary; the champion stays, so another one follows."""
    assert isinstance(fleet.registry, Aliases)
    run(fleet, "plan", request_id="again")
    fleet.registry.fault = fault
    with pytest.raises(type(fault)):
        run(fleet, "plan", request_id="again")
    assert outcome(fleet, 4) == "running"
    ended = run(fleet, "roll_back", request_id="again", reason="plan failed: MLflow is away")
    assert ended.reason == "rollout 4 is over: plan failed: MLflow is away"
    model = fleet.files.get(NAME)
    assert (outcome(fleet, 4), model.canary, model.weights) == ("failed", None, {1: 100})
    assert fleet.registry.champion == "2"
    fleet.registry.fault = None
    assert run(fleet, "plan", request_id="another").generation == 5


def test_a_plan_that_fails_before_it_has_numbered_a_rollout_leaves_nothing_to_end(fleet: Fleet) -> None:
    """The one that runs is somebody else's."""
    assert run(fleet, "roll_back", request_id="unheard-of", reason="plan failed").outcome == "nothing_to_do"
    assert outcome(fleet, 3) == "running"


def test_a_repeated_event_gives_no_watch_a_larger_share_of_the_false_alarms(fleet: Fleet) -> None:
    """Or a version could be tried with 5 per cent of them as often as its event comes."""
    fleet.files.update(
        NAME, lambda model: model.with_rollout(model.history[-1].model_copy(update={"watches": 4, "step": 1}))
    )
    generation = run(fleet, "plan", request_id="again").generation
    repeated = fleet.files.get(NAME).rollout(generation)
    assert repeated is not None
    assert (repeated.version, repeated.step, repeated.watches) == ("2", 1, 4)
