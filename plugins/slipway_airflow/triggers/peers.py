"""Waits for the other trials of a search."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from slipway_airflow.peers import Peers

FIRST_POLL_S = 1.0
MAX_POLL_S = 10.0
"""Every trial that has not had its turn asks, and some searches have hundreds."""


class PeersTrigger(BaseTrigger):
    """Fires once the trials `numbers` have trained at `rungs` rungs (None: to their end), or ended otherwise."""

    def __init__(self, *, peers: tuple[str, str, str], numbers: list[int], rungs: int | None) -> None:
        super().__init__()
        self.peers = Peers(*peers)
        self.numbers = numbers
        self.rungs = rungs

    def serialize(self) -> tuple[str, dict[str, Any]]:
        peers = (self.peers.dag_id, self.peers.run_id, self.peers.task_id)
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {"peers": peers, "numbers": self.numbers, "rungs": self.rungs},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        pause_s, before = FIRST_POLL_S, len(self.numbers)
        while awaited := (await sync_to_async(self.peers.look)(self.numbers, self.rungs))[0]:
            # Where something moves, more will soon.
            pause_s = FIRST_POLL_S if len(awaited) < before else min(pause_s * 1.3, MAX_POLL_S)
            before = len(awaited)
            await asyncio.sleep(pause_s)
        yield TriggerEvent({})
