"""Requests by how they begin, against a real Envoy with stand-in replicas."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fleet_rig import MODEL, Rig

from pipeline.fleet.state import Aside

pytestmark = pytest.mark.integration
BEGINNINGS = [f"You answer for shop {number}. {'Be kind. ' * 40}" for number in range(12)]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A version with three replicas whose recipe says `routing: prefix`."""
    rig = Rig(tmp_path_factory.mktemp("prefix"))
    rig.up()
    rig.registry.configure(replicas=3, routing="prefix")
    assert [result.outcome for result in rig.roll_out("1")][-1] == "done", rig.said
    yield rig
    rig.supervisor.stop()


def ask(rig: Rig, beginning: str, question: str = "why?", **headers: str) -> httpx.Response:
    messages = [{"role": "system", "content": beginning}, {"role": "user", "content": question}]
    answer = httpx.post(
        f"{rig.gateway.url}/v1/chat/completions",
        json={"model": MODEL, "messages": messages},
        headers={"authorization": f"Bearer {rig.key}", **headers},
        timeout=30,
        trust_env=False,
        verify=False,
    )
    assert answer.status_code == 200, answer.text
    return answer


def counted(rig: Rig) -> Counter[str]:
    """Requests of each replica of what serves, so far."""
    serving = rig.state().serving
    assert serving is not None
    hosts = rig.gateway.hosts(MODEL, serving.deployment)
    return Counter({address: figures.requests for address, figures in hosts.items()})


def replicas_of(rig: Rig, beginning: str, count: int = 4, **headers: str) -> set[str]:
    """Where so many requests of one beginning went, one after the other."""
    before = counted(rig)
    for number in range(count):
        ask(rig, beginning, f"question {number}", **headers)
    found = counted(rig) - before
    assert found.total() == count
    return set(found)


def test_requests_that_begin_alike_go_to_one_replica_and_others_to_others(rig: Rig) -> None:
    """Whatever session they name, and whatever hash they claim."""
    places = [replicas_of(rig, beginning) for beginning in BEGINNINGS]
    assert [len(found) for found in places] == [1] * len(BEGINNINGS)
    assert len(set.union(*places)) == 3
    forged: dict[str, Any] = {"x-slipway-prefix": "00000000", "x-slipway-session": "s"}
    assert replicas_of(rig, BEGINNINGS[0], **forged) == places[0]


def test_a_replica_that_has_more_than_its_share_passes_on_what_comes(rig: Rig) -> None:
    """So many at once that all begin alike are on every replica."""
    rig.behave("1", delay_s=3.0)
    before = counted(rig)
    try:
        with ThreadPoolExecutor(36) as pool:
            list(pool.map(lambda number: ask(rig, BEGINNINGS[0], f"question {number}"), range(36)))
    finally:
        rig.behave("1")
    found = counted(rig) - before
    assert len(found) == 3
    assert max(found.values()) <= 18


def test_who_is_put_aside_gets_none_of_its_requests_until_it_is_back(rig: Rig) -> None:
    """Then they go to it again; the others' stay where they are."""
    (usual,) = replicas_of(rig, BEGINNINGS[0])
    model = rig.state()
    (deployment,) = (found for found in model.deployments if found.version == "1")

    def put_aside(aside: Aside | None) -> None:
        changed = tuple(
            replica.model_copy(update={"aside": aside}) if replica.address == usual else replica
            for replica in deployment.replicas
        )
        fresh = deployment.model_copy(update={"replicas": changed})
        rig.fleet.change(MODEL, model.generation, lambda found: found.with_deployment(fresh))

    put_aside(Aside.model_validate({"since": 1.0, "kind": "slow", "reason": "a test"}))
    try:
        assert rig.gateway.wait(lambda: usual not in replicas_of(rig, BEGINNINGS[0], 1), 30)
        assert usual not in replicas_of(rig, BEGINNINGS[0])
    finally:
        put_aside(None)
    assert rig.gateway.wait(lambda: replicas_of(rig, BEGINNINGS[0], 1) == {usual}, 30)


def test_weights_share_requests_that_begin_alike_and_sessions_stay_on_their_version(rig: Rig) -> None:
    """A beginning chooses among the replicas of a version, never the version."""
    rig.registry.set_alias(MODEL, "champion", "2")
    generation = rig.phase("plan", request_id="two").generation
    rig.phase("start_canary", request_id="two", generation=generation)
    rig.fleet.change(MODEL, generation, lambda model: model.changed(weights={1: 50, generation: 50}))
    try:
        versions = Counter(ask(rig, BEGINNINGS[0]).headers["x-slipway-version"] for _ in range(60))
        assert set(versions) == {"1", "2"}
        assert min(versions.values()) >= 12
        for number in range(4):
            session = {"x-slipway-session": f"session-{number}"}
            drawn = {ask(rig, beginning, **session).headers["x-slipway-version"] for beginning in BEGINNINGS}
            assert len(drawn) == 1
    finally:
        rig.phase("roll_back", request_id="two", generation=generation)
