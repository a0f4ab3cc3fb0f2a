"""Everything that is done to a fleet while OpenAI's own client asks, streams included: nobody notices."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from fleet_agreement import disagreements
from fleet_rig import MODEL, Rig
from openai_load import Running, openai_clients

from pipeline.commands.keys import bring, change
from pipeline.fleet import gateway
from pipeline.fleet.autoscaling.scaling import Scaler
from pipeline.fleet.doors.keys import Allowed, clock, create, rotate
from pipeline.fleet.operations import pause, resume, rollback
from pipeline.fleet.state import Deployment

pytestmark = pytest.mark.integration

MANNERS: dict[str, object] = {"chunks": 8, "chunk_s": 0.01}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A fleet that serves version 1, and whose replaced versions stay warm for a while."""
    rig = Rig(tmp_path)
    for version in range(1, 10):
        rig.behave(str(version), **MANNERS)
    rig.up()
    rig.registry.configure(keep_warm_s=3.0)
    rig.roll_out("1")
    yield rig
    rig.supervisor.stop()


@dataclass
class Deeds:
    """What is done to the fleet; each says what it is for in its docstring."""

    rig: Rig
    clients: Running

    def promote(self, version: str = "2") -> None:
        """A good version takes over."""
        results = {result.phase: result for result in self.rig.roll_out(version)}
        assert results["promote"].outcome == "done", results
        assert self.clients.report().versions[version] > 0

    def refuse(self, version: str, **manners: object) -> None:
        """A version that answers badly is found out, and the old one goes on."""
        self.rig.behave(version, **MANNERS, **manners)
        before = self.rig.state().serving
        results = {result.phase: result for result in self.rig.roll_out(version)}
        assert results["shift"].outcome == "unhealthy", results
        after = self.rig.state().serving
        assert before is not None
        assert after is not None
        assert after.version == before.version

    def go_back(self) -> None:
        """A person takes a version back whose predecessor is warm."""
        self.rig.registry.configure(keep_warm_s=60.0)
        self.rig.registry.set_alias(MODEL, "champion", "4")
        request_id = "to-4-and-back"
        generation = self.rig.phase("plan", request_id=request_id).generation
        for phase in ("start_canary", "shift", "promote"):
            self.rig.phase(phase, request_id=request_id, generation=generation)
        taken_back = rollback(self.rig.layout, MODEL, self.rig.registry)
        assert taken_back.immediate
        self.rig.registry.configure(keep_warm_s=0.0)
        self.rig.follow("after-the-rollback")

    def pause_and_resume(self, version: str) -> None:
        """A rollout is held in its middle, and goes on."""
        self.rig.registry.configure(step_s=3.0)
        with ThreadPoolExecutor(1) as pool:
            rollout = pool.submit(self.rig.roll_out, version)
            seen = self.clients.report().versions[version]
            assert self.rig.gateway.wait(lambda: self.clients.report().versions[version] > seen, 60)
            pause(self.rig.layout, MODEL, by="a person", reason="to look at it")
            self.requests_more(300)
            resume(self.rig.layout, MODEL, by="a person", reason="it is fine")
            assert {result.phase: result.outcome for result in rollout.result(120)}["promote"] == "done"

    def move_the_alias_on_and_back(self, on: str) -> None:
        """Somebody wants another version, and the one before again while the other is on trial."""
        self.rig.registry.configure(step_s=3.0)
        serving = self.rig.state().serving
        assert serving is not None
        with ThreadPoolExecutor(1) as pool:
            rollout = pool.submit(self.rig.roll_out, on)
            assert self.rig.gateway.wait(lambda: self.clients.report().versions[on] > 0, 60)
            self.rig.roll_out(serving.version)
            assert {result.phase: result.outcome for result in rollout.result(120)}["shift"] == "superseded"
        assert self.rig.state().serving == serving

    def restart_the_gateway(self) -> None:
        """Another Envoy takes over."""
        gateway.restart(self.rig.layout, drain_s=5)

    def scale_up_and_down(self) -> None:
        """One replica more, which answers, and one fewer."""
        for step in (1, -1):
            model, deployment = self.rig.state(), self.serving()
            Scaler(self.rig.fleet).scale(model, deployment, len(deployment.serving) + step, "somebody wants it")
            addresses = {replica.address for replica in self.serving().replicas}
            self.reach(deployment.generation, addresses)
            self.requests_more(300)

    def reach(self, generation: int, addresses: set[str]) -> None:
        """Waits until the gateway sends requests to these and no others."""
        assert self.rig.gateway.wait(lambda: set(self.rig.gateway.hosts(MODEL, generation)) == addresses, 60)

    def serving(self) -> Deployment:
        model = self.rig.state()
        assert model.serving is not None
        found = model.deployment(model.serving.deployment)
        assert found is not None
        return found

    def rotate_the_key(self) -> None:
        """The clients are given a key of their own, then the next, while the one before still counts."""
        fresh = change(self.rig.layout, "key-created", "load", lambda ring: create(ring, "load", Allowed(), clock()))
        bring(self.rig.layout)
        self.use(fresh)
        fresh = change(self.rig.layout, "key-rotated", "load", lambda ring: rotate(ring, "load", 2.0, clock()))
        bring(self.rig.layout)
        self.use(fresh)

    def use(self, key: str) -> None:
        self.clients.use_key(key)
        self.requests_more(300)

    def requests_more(self, count: int) -> None:
        asked = self.clients.report().requests
        assert self.rig.gateway.wait(lambda: self.clients.report().requests > asked + count, 60)


DEEDS: dict[str, Callable[[Deeds], None]] = {
    "a promotion": lambda deeds: deeds.promote("2"),
    "a version that errs": lambda deeds: deeds.refuse("3", error_rate=0.3),
    "a rollback by a person": lambda deeds: deeds.go_back(),
    "a version that is slow": lambda deeds: deeds.refuse("5", delay_s=0.4),
    "a restart of the gateway": lambda deeds: deeds.restart_the_gateway(),
    "replicas that come and go": lambda deeds: deeds.scale_up_and_down(),
    "a rollout that is paused and resumed": lambda deeds: deeds.pause_and_resume("6"),
    "another key": lambda deeds: deeds.rotate_the_key(),
    "the alias moved on and back": lambda deeds: deeds.move_the_alias_on_and_back("7"),
}


def all_deeds(rig: Rig, folder: Path, *, until: int = 0) -> dict[str, object]:
    """Does everything, then goes on until so many requests were made; what the clients saw, for the documents."""
    with openai_clients(rig.gateway.url, rig.key, MODEL, folder) as clients:
        assert rig.gateway.wait(lambda: clients.report().requests > 100, 60)
        for name, deed in DEEDS.items():
            deed(Deeds(rig, clients))
            report = clients.report()
            print(f"{name}: {report.requests} requests, {report.failed} failed", flush=True)
            assert report.failures == [], name
        assert rig.gateway.wait(lambda: clients.report().requests >= until, 600)
    report = clients.report()
    assert report.failures == []
    assert (report.failed, report.broken_streams) == (0, 0)
    assert sum(report.versions.values()) == report.requests
    assert disagreements(rig) == []
    return {"requests": report.requests, "streams": report.streams, "versions": dict(report.versions)}


def test_clients_notice_nothing_that_is_done_to_the_fleet(rig: Rig, tmp_path: Path) -> None:
    """No request fails and no stream breaks; afterwards all that says what is served says the same."""
    seen = all_deeds(rig, tmp_path / "clients")
    assert int(str(seen["streams"])) > 100


@pytest.mark.drill
def test_clients_notice_nothing_in_twenty_thousand_requests(rig: Rig, tmp_path: Path) -> None:
    """The same for as long as it takes to be sure."""
    print(json.dumps(all_deeds(rig, tmp_path / "clients", until=20_000)), flush=True)
