"""Watches the registry: fires when a model's champion is another than before, whoever moved the alias.

What was fired is kept in the asset's state store, so that a new triggerer neither repeats nor forgets it. An event can
still get lost (a crash in the very second, two events merged into one run): while champion and serving differ and no
rollout runs, it is repeated after growing pauses. The rollout's plan does nothing for a version that is served.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from pipeline import settings
from pipeline.contracts.base import Contract
from slipway_airflow.hooks.champions import Aliases, open_client, read_aliases

DAG_ID = "rollout"
FIRST_REPEAT_S = 30.0
MAX_REPEAT_S = 3600.0
MAX_PAUSE_S = 15.0
STATE = "fired"


class Fired(Contract):
    """The last event of one model."""

    version: str
    at: float
    """Seconds since the epoch."""
    repeat_s: float = FIRST_REPEAT_S
    """How long until it is repeated if the fleet has not followed."""

    def repeated(self, now: float) -> "Fired":
        return Fired(version=self.version, at=now, repeat_s=min(2 * self.repeat_s, MAX_REPEAT_S))


def due(
    aliases: Mapping[str, Aliases], fired: Mapping[str, Fired], now: float
) -> tuple[list[str], list[str], dict[str, Fired]]:
    """The models whose champion is new, those whose event may have been lost, and what to remember of all."""
    new: list[str] = []
    overdue: list[str] = []
    kept: dict[str, Fired] = {}
    for name, model in sorted(aliases.items()):
        if model.champion is None:
            continue
        last, waiting = fired.get(name), model.champion != model.serving
        if last is None or last.version != model.champion:
            kept[name] = Fired(version=model.champion, at=now)
            if last is not None or waiting:
                new.append(name)
            continue
        kept[name] = last
        if waiting and now - last.at >= last.repeat_s:
            overdue.append(name)
    return new, overdue, kept


class ChampionTrigger(BaseEventTrigger):
    """Polls MLflow; its events carry {"name", "version"}. MLflow may be away for any time."""

    def __init__(self, *, poll_s: float = 1.5) -> None:
        super().__init__()
        self.poll_s = poll_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{type(self).__module__}.{type(self).__qualname__}", {"poll_s": self.poll_s}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        import httpx

        configured = settings.load()
        tracking_uri = configured.tracking_uri
        if tracking_uri is None:
            raise RuntimeError("MLFLOW_TRACKING_URI is not set for the triggerer: nothing can tell it the champions")
        pause_s = self.poll_s
        client = await asyncio.to_thread(open_client, tracking_uri, configured.tracking_login)
        async with client:
            while True:
                try:
                    aliases = await read_aliases(client)
                    pause_s = self.poll_s
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    pause_s = min(2 * pause_s, MAX_PAUSE_S)
                    reason = f"{type(error).__name__} {error}".strip()
                    self.log.warning("MLflow tells no champions (%s); asking again in %.0f s", reason, pause_s)
                    aliases = {}
                if aliases:
                    async for event in self._events(aliases):
                        yield event
                await asyncio.sleep(pause_s)

    async def _events(self, aliases: Mapping[str, Aliases]) -> AsyncIterator[TriggerEvent]:
        """Remembers each event before it is fired: repeating a lost one is cheaper than a second rollout."""
        fired = await self._load()
        names, overdue, kept = due(aliases, fired, time.time())
        if overdue and not await rollouts_run():
            for name in overdue:
                self.log.info("%s: serving is not yet version %s: firing again", name, kept[name].version)
                kept[name] = kept[name].repeated(time.time())
            names += overdue
        if kept != fired:
            await self._save(kept)
        for name in names:
            yield TriggerEvent({"name": name, "version": kept[name].version})
            # Events of the same moment would be merged into one DAG run.
            await asyncio.sleep(self.poll_s)

    async def _load(self) -> dict[str, Fired]:
        assert self.asset_state_store is not None
        stored: Any = await self.asset_state_store.aget(STATE, {})
        return {name: Fired.model_validate(record) for name, record in stored.items()}

    async def _save(self, kept: Mapping[str, Fired]) -> None:
        assert self.asset_state_store is not None
        await self.asset_state_store.aset(STATE, {name: record.model_dump() for name, record in kept.items()})


async def rollouts_run() -> bool:
    """Whether any rollout is under way; it may be the one that an overdue event has started."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    return await asyncio.to_thread(RuntimeTaskInstance.get_dr_count, DAG_ID, None, None, ["queued", "running"]) > 0
