"""How many replicas of a model may live at once: a whole second set beside the first, or one replaced at a time. Pure.

What is free and what a serving replica takes is measured when the rollout starts its first replica.
"""

import math
from typing import Literal

from pipeline.contracts.base import Contract
from pipeline.errors import ReplicaFailed

RESERVE = 0.05
"""Share of the machine's memory that stays free."""

Strategy = Literal["auto", "surge", "replace"]


class Memory(Contract):
    """What the machine that runs the replicas has, in bytes."""

    total_bytes: int
    free_bytes: int
    """What new processes can take without swapping."""
    replica_bytes: int
    """What the largest of the running replicas takes; 0 if none runs."""

    @property
    def room(self) -> int | None:
        """So many more such replicas fit; None if nothing could be measured."""
        if not self.replica_bytes:
            return None
        return max(0, int((self.free_bytes - RESERVE * self.total_bytes) // self.replica_bytes))

    def __str__(self) -> str:
        return (
            f"{self.free_bytes / 1e9:.1f} of {self.total_bytes / 1e9:.1f} GB are free and a serving replica takes"
            f" {self.replica_bytes / 1e9:.2f} GB"
        )


class Capacity(Contract):
    """What was decided."""

    strategy: Literal["surge", "replace"]
    places: int
    """Replicas of the model that may live at once; 0: no limit."""
    reason: str


def decide(memory: Memory, *, asked: Strategy, alive: int, wanted: int) -> Capacity:
    """How the new version's replicas find a place.

    Args:
        asked: the recipe's `rollout.strategy`.
        alive: replicas of the version that serves; 0: there is none.
        wanted: replicas of the new version.

    Raises:
        ReplicaFailed: not even one more replica fits beside one that serves, or the new version wants more than fit.
    """
    if asked == "surge" or alive == 0:
        why = "the recipe says so" if asked == "surge" else "nothing serves yet"
        return Capacity(strategy="surge", places=0, reason=why)
    room = memory.room
    if asked == "auto" and (room is None or room >= wanted):
        why = "nothing to measure" if room is None else f"{memory}: room for {room} more, {wanted} are wanted"
        return Capacity(strategy="surge", places=0, reason=why)
    room = room or 0
    places = alive + room if asked == "auto" else alive + (1 if alive == 1 and room else 0)
    if places < 2:
        raise ReplicaFailed(
            f"there is no place for a replica of the new version: {memory}, and only one serves, which cannot make"
            " place without failing requests. Free memory, lower rollout.kv_cache_mib, or serve with rollout.replicas 2"
        )
    if wanted > places:
        raise ReplicaFailed(f"rollout.replicas is {wanted}, but only {places} fit: {memory}. Lower it, or free memory")
    return Capacity(strategy="replace", places=places, reason=f"{memory}: room for {room} more, {wanted} are wanted")


def needed(weight: int, *, wanted: int, places: int) -> int:
    """Replicas that the new version should have before it takes `weight` per cent of the traffic.

    One place stays with the version that serves until the new one is promoted, so that going back is a change of
    weights.
    """
    return max(1, min(math.ceil(weight * wanted / 100), places - 1))
