"""People who change their minds in mid-rollout, and two of them at once: a real gateway, stand-in replicas."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fleet_rig import MODEL, FileRegistry, Rig

from pipeline.errors import SlipwayError, SpecError, TransientError
from pipeline.fleet.files import FleetFiles
from pipeline.fleet.operations import rollback
from pipeline.fleet.state import ModelFleet

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A fleet that serves version 1, and does so again after each test."""
    rig = Rig(tmp_path_factory.mktemp("minds"))
    rig.registry.configure(step_s=1.0)
    rig.up()
    rig.roll_out("1")
    yield rig
    rig.supervisor.stop()


def begin(rig: Rig, version: str, *phases: str) -> int:
    """A rollout up to some phase; its generation."""
    rig.registry.set_alias(MODEL, "champion", version)
    generation = rig.phase("plan", request_id=f"to-{version}").generation
    for phase in phases:
        rig.phase(phase, request_id=f"to-{version}", generation=generation)
    return generation


def replicas(rig: Rig) -> set[str]:
    return {state.name.split("-g")[0] for state in rig.supervisor.states() if state.name.startswith("replica-")}


def test_an_alias_that_is_moved_back_takes_the_canary_away(rig: Rig) -> None:
    """Its traffic goes with the plan already; it is never promoted, and its replicas are removed."""
    with rig.load(clients=2) as load, ThreadPoolExecutor(1) as pool:
        generation = begin(rig, "2", "start_canary")
        shift = pool.submit(rig.phase, "shift", request_id="to-2", generation=generation)
        while load.count("2") == 0:
            load.over.wait(0.01)
        rig.registry.set_alias(MODEL, "champion", "1")
        planned = rig.phase("plan", request_id="back")
        assert (planned.outcome, planned.version) == ("done", "1")
        assert rig.state().weights == {1: 100}
        assert shift.result().outcome == "superseded"
        assert rig.phase("promote", request_id="to-2", generation=generation).outcome == "superseded"
        rig.follow("back")
    assert load.failures == []
    assert rig.state().serving is not None
    assert rig.state().serving.version == "1"
    assert replicas(rig) == {"replica-tiny-v1"}
    assert rig.registry.alias(MODEL, "serving") == "1"
    assert [rollout.outcome for rollout in rig.state().history[-2:]] == ["superseded", "promoted"]


def test_what_nobody_wants_any_more_is_not_promoted_though_it_is_ready(rig: Rig) -> None:
    """The alias was moved after the last step, and nothing has noticed yet."""
    generation = begin(rig, "3", "start_canary", "shift")
    rig.registry.set_alias(MODEL, "champion", "1")
    for _ in range(2):
        result = rig.phase("promote", request_id="to-3", generation=generation)
        assert (result.outcome, result.reason) == ("superseded", "the champion is version 1 now")
    assert rig.ask().headers["x-slipway-version"] == "1"
    assert rig.registry.alias(MODEL, "serving") == "1"
    rig.phase("retire", request_id="to-3", generation=generation)
    assert replicas(rig) == {"replica-tiny-v1"}


@pytest.mark.parametrize(("version", "phases"), [("4", ()), ("5", ("start_canary",))])
def test_rolling_back_in_mid_rollout_takes_back_the_version_on_trial(
    rig: Rig, version: str, phases: tuple[str, ...]
) -> None:
    """And not the one before what is serving; also where the canary has no replicas yet."""
    begin(rig, version, *phases)
    done = rollback(rig.layout, MODEL, rig.registry)
    assert (done.version, done.replaced, done.immediate) == ("1", version, True)
    assert rig.registry.alias(MODEL, "champion") == "1"
    rig.follow(f"after {version}")
    assert replicas(rig) == {"replica-tiny-v1"}


class NoMlflow(FileRegistry):
    """MLflow goes away once the traffic has moved."""

    def compare_and_set_alias(self, name: str, alias: str, expected: str | None, version: str | None) -> bool:
        raise TransientError("MLflow does not answer")


def test_a_rollback_in_mid_rollout_that_was_cut_short_is_finished_and_no_further_one(rig: Rig) -> None:
    """The second attempt moves the alias, and stays on the same version."""
    begin(rig, "6", "start_canary")
    with pytest.raises(TransientError, match="the traffic is on version 1"):
        rollback(rig.layout, MODEL, NoMlflow(rig.registry.path))
    done = rollback(rig.layout, MODEL, rig.registry)
    assert (done.version, done.replaced) == ("1", "6")
    assert rig.registry.alias(MODEL, "champion") == "1"
    rig.follow("after 6")


def test_of_two_people_who_roll_back_at_once_one_is_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both would take one step back; two steps are never taken."""
    begin(rig, "7", "start_canary")
    look, looked, own = FleetFiles.get, threading.Barrier(2), threading.local()

    def look_together(files: FleetFiles, name: str) -> ModelFleet:
        found = look(files, name)
        if not hasattr(own, "looked"):
            own.looked = looked.wait(30)
        return found

    monkeypatch.setattr(FleetFiles, "get", look_together)
    answers = []

    def ask() -> None:
        try:
            answers.append(rollback(rig.layout, MODEL, rig.registry).version)
        except SlipwayError as error:
            answers.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    assert sorted(answers)[0] == "1"
    assert "somebody else rolled it back at the same time, to version 1" in sorted(answers)[1]
    assert rig.registry.alias(MODEL, "champion") == "1"
    rig.follow("after 7")


class SlowMlflow(FileRegistry):
    """Does not say who is the champion before the traffic is back."""

    rig: Rig

    def alias(self, name: str, alias: str) -> str | None:
        assert self.rig.gateway.wait(lambda: self.rig.state().canary is None, 30)
        return super().alias(name, alias)


def test_a_rollback_moves_the_traffic_before_mlflow_has_said_anything(rig: Rig) -> None:
    """The alias follows when MLflow answers."""
    begin(rig, "11", "start_canary")
    slow = SlowMlflow(rig.registry.path)
    slow.rig = rig
    assert rollback(rig.layout, MODEL, slow).immediate
    assert rig.registry.alias(MODEL, "champion") == "1"
    rig.follow("after 11")


class PromotedMeanwhile(FileRegistry):
    """Somebody promotes version 9 right after the look."""

    def alias(self, name: str, alias: str) -> str | None:
        found = super().alias(name, alias)
        super().set_alias(name, "champion", "9")
        return found


def test_a_rollback_does_not_undo_a_promotion_that_came_in_between(rig: Rig) -> None:
    """The promotion wins, and the one who rolled back is told."""
    begin(rig, "8", "start_canary")
    with pytest.raises(TransientError, match="somebody moved the champion of tiny at the same time"):
        rollback(rig.layout, MODEL, PromotedMeanwhile(rig.registry.path))
    assert rig.registry.alias(MODEL, "champion") == "9"
    rig.registry.set_alias(MODEL, "champion", "1")
    rig.follow("after 9")


def test_a_request_that_hangs_holds_a_removal_for_the_drain_time_and_no_longer(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both replicas of the canary hang; they are ended together, without asking."""
    monkeypatch.setattr("pipeline.fleet.parts.DRAIN_S", 2)
    rig.behave("10", chunks=10_000)
    generation = begin(rig, "10", "start_canary")
    deployment = rig.state().deployment(generation)
    assert deployment is not None
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(endless, rig)
        addresses = {replica.address for replica in deployment.replicas}
        assert rig.gateway.wait(lambda: rig.gateway.active_addresses(MODEL) >= addresses, 30)
        result = rig.phase("roll_back", request_id="to-10", generation=generation)
    assert result.outcome == "done"
    assert any("requests still hang after 2 s; ended" in said for said in rig.said)
    assert replicas(rig) == {"replica-tiny-v1"}


def endless(rig: Rig) -> None:
    """A stream from the canary that goes on for a quarter of an hour."""
    from pipeline.fleet.gateway import probe_key

    headers = {"authorization": f"Bearer {probe_key(rig.layout)}", "x-slipway-canary": "always"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with httpx.Client(base_url=rig.gateway.url, headers=headers, timeout=60, trust_env=False) as client:
        try:
            with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                for _ in answer.iter_lines():
                    continue
        except httpx.HTTPError:
            return


def test_there_is_still_no_way_back_from_the_first_version(rig: Rig) -> None:
    """None of the above counts as an earlier one."""
    with pytest.raises(SpecError, match="no earlier version"):
        rollback(rig.layout, MODEL, rig.registry)
