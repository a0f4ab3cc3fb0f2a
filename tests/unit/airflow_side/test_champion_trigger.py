"""When a champion is worth an event, and that MLflow may be away."""

import asyncio
from typing import Any

import httpx
import pytest

from slipway_airflow.hooks.champions import Aliases, read_aliases
from slipway_airflow.triggers import champion
from slipway_airflow.triggers.champion import FIRST_REPEAT_S, ChampionTrigger, Fired, due

NOW = 1000.0


def fired(version: str, at: float = NOW) -> dict[str, Fired]:
    return {"m": Fired(version=version, at=at)}


@pytest.mark.parametrize(
    ("aliases", "before", "new", "overdue"),
    [
        pytest.param(Aliases(champion="2", serving="1"), {}, ["m"], [], id="first start, fleet behind"),
        pytest.param(Aliases(champion="2", serving="2"), {}, [], [], id="first start, fleet up to date"),
        pytest.param(Aliases(champion="2"), {}, ["m"], [], id="never served"),
        pytest.param(Aliases(champion="2", serving="1"), fired("1"), ["m"], [], id="moved"),
        pytest.param(Aliases(champion="1", serving="1"), fired("2"), ["m"], [], id="moved back under way"),
        pytest.param(Aliases(champion="2", serving="1"), fired("2"), [], [], id="fired just now"),
        pytest.param(Aliases(champion="2", serving="1"), fired("2", 0), [], ["m"], id="fired long ago, not served"),
        pytest.param(Aliases(champion="2", serving="2"), fired("2", 0), [], [], id="served"),
        pytest.param(Aliases(serving="2"), fired("2", 0), [], [], id="alias deleted"),
    ],
)
def test_what_is_due(aliases: Aliases, before: dict[str, Fired], new: list[str], overdue: list[str]) -> None:
    """A change fires, a standstill does not, and an event that nothing came of is overdue."""
    assert due({"m": aliases}, before, NOW)[:2] == (new, overdue)


def test_an_alias_that_was_deleted_and_set_again_fires() -> None:
    """Deleting it forgets the model."""
    _, _, kept = due({"m": Aliases(serving="2")}, fired("2"), NOW)
    assert kept == {}


def test_repeats_come_at_growing_pauses() -> None:
    """A fleet that cannot follow is reminded, not flooded."""
    once = Fired(version="2", at=NOW)
    twice = once.repeated(NOW + FIRST_REPEAT_S)
    assert (twice.repeat_s, twice.at) == (2 * FIRST_REPEAT_S, NOW + FIRST_REPEAT_S)


def test_all_pages_are_read() -> None:
    """However many models there are."""
    pages = {
        None: {"registered_models": [{"name": "a", "aliases": [{"alias": "champion", "version": "3"}]}]},
        "more": {"registered_models": [{"name": "b", "aliases": [{"alias": "serving", "version": 1}]}, {"name": "c"}]},
    }
    pages[None]["next_page_token"] = "more"  # type: ignore[assignment]

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=pages[request.url.params.get("page_token")])

    async def read() -> dict[str, Aliases]:
        async with httpx.AsyncClient(base_url="http://mlflow", transport=httpx.MockTransport(answer)) as client:
            return await read_aliases(client)

    assert asyncio.run(read()) == {"a": Aliases(champion="3"), "b": Aliases(serving="1"), "c": Aliases()}


class StateStore:
    """The asset's state store, in memory."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    async def aget(self, key: str, default: Any) -> Any:
        return self.values.get(key, default)

    async def aset(self, key: str, value: Any) -> None:
        self.values[key] = value


def test_a_new_triggerer_does_not_fire_again_and_mlflow_may_be_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fired is kept outside; an outage is waited out."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow")
    store, requests = StateStore(), []
    models = {"registered_models": [{"name": "m", "aliases": [{"alias": "champion", "version": "2"}]}]}

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        if len(requests) == 1:
            raise httpx.ConnectError("refused")
        return httpx.Response(503) if len(requests) == 2 else httpx.Response(200, json=models)

    monkeypatch.setattr(
        champion,
        "open_client",
        lambda uri, login: httpx.AsyncClient(base_url=uri, transport=httpx.MockTransport(answer)),
    )

    async def watch(polls: int) -> list[Any]:
        trigger = ChampionTrigger(poll_s=0.01)
        trigger.asset_state_store = store  # type: ignore[assignment]
        payloads: list[Any] = []

        async def collect() -> None:
            async for event in trigger.run():
                payloads.append(event.payload)

        task = asyncio.create_task(collect())
        while len(requests) < polls and not task.done():
            await asyncio.sleep(0.01)
        assert not task.done(), task.exception()
        task.cancel()
        return payloads

    assert asyncio.run(watch(5)) == [{"name": "m", "version": "2"}]
    assert asyncio.run(watch(9)) == []
