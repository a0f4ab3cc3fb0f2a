"""What is wrong with one of several replicas of a version, judged from looks at it and from what clients got. Pure.

Envoy itself tries a request again elsewhere that a replica refuses, resets or answers with 5xx, and ejects who does so
again and again. Here is what it cannot see: a process that stands still, comes and goes, answers as something else,
or is much slower than its like.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Literal

Outcome = Literal["well", "hung", "busy", "mute", "away", "wrong"]
"""`hung` and `busy`: no answer in time, from a process that does nothing, and from one that works. `mute`: it answers
for its health, and gives nobody a token."""
Kind = Literal["hung", "crashing", "wrong", "slow"]

SILENT: tuple[Outcome, ...] = ("hung", "busy", "mute")
HUNG_LOOKS = 3
"""In a row without an answer, until it is put aside, which does no harm if others are well."""
KILL_LOOKS = 6
"""In a row in which it neither answered nor did anything, until it is killed, so that what it has taken is tried again
on another."""
KILL_BUSY_LOOKS = 60
"""In a row without any answer though its process works: on a machine that is too busy it would have had one by then.
About as long as the gateway waits until it tries again elsewhere what a replica has taken."""
KILL_ALONE_LOOKS, KILL_BUSY_ALONE_LOOKS = 20, 150
"""As long as that where too few others are well: a machine that is too busy makes all of them look hung."""
NUM_CRASHES, CRASH_WINDOW_S = 3, 60.0
SLOW_RATIO, SLOW_BY_S, SLOW_MIN_REQUESTS, SLOW_WINDOW_S = 3.0, 0.25, 8, 30.0
"""A median so many times, and by so much, above that of the others, over so many requests of each side."""
WELL_S: dict[Kind, float] = {"hung": 2.0, "crashing": 30.0, "wrong": 6.0, "slow": 60.0}
"""How long it must have been well without a break until it is used again."""


@dataclass(frozen=True)
class Look:
    """One question to one replica."""

    at: float
    """Seconds, monotonic."""
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True)
class Finding:
    """Why a replica should be put aside."""

    kind: Kind
    reason: str


@dataclass
class History:
    """What is known of one replica."""

    looks: deque[Look] = field(default_factory=lambda: deque(maxlen=200))
    latencies_s: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=2000))
    """Of answers with status 200 that no other replica was asked for before: when (monotonic), and how long."""
    answered_at: float = -math.inf
    """When it was last seen to have answered anybody, beside the looks (monotonic)."""
    to_end: str = ""
    """Why its process is to be ended, until somebody has taken that order."""

    def silent_looks(self) -> int:
        """The last ones in a row that had no answer."""
        return _last_in_a_row(self.looks, SILENT)

    def well_s(self, now: float) -> float:
        """For how long every look has been well."""
        bad = [look.at for look in self.looks if look.outcome != "well"]
        since = max(bad) if bad else (self.looks[0].at if self.looks else now)
        return now - since

    def recent_s(self, now: float) -> list[float]:
        """Latencies of the last while."""
        return [latency for at, latency in self.latencies_s if now - at <= SLOW_WINDOW_S]


def finding(history: History, others: list[History], now: float) -> Finding | None:
    """What is wrong with it; None if nothing is."""
    looks = history.looks
    if history.silent_looks() >= HUNG_LOOKS:
        told = looks[-1].detail or f"it has not answered {history.silent_looks()} questions in a row"
        return Finding("hung", told)
    if looks and looks[-1].outcome == "wrong":
        return Finding("wrong", looks[-1].detail)
    recent = [look.outcome for look in looks if now - look.at <= CRASH_WINDOW_S]
    crashes = sum(before != "away" and after == "away" for before, after in pairwise(recent))
    if crashes >= NUM_CRASHES:
        return Finding("crashing", f"it was gone {crashes} times in {CRASH_WINDOW_S:g} s")
    return _slow(history.recent_s(now), [latency for other in others for latency in other.recent_s(now)])


def _slow(own_s: list[float], others_s: list[float]) -> Finding | None:
    if min(len(own_s), len(others_s)) < SLOW_MIN_REQUESTS:
        return None
    own, usual = median(own_s), median(others_s)
    if own > SLOW_RATIO * usual and own > usual + SLOW_BY_S:
        return Finding("slow", f"its answers take {own:.2f} s, those of the others {usual:.2f} s (medians)")
    return None


def may_leave(num_replicas: int, num_well: int) -> bool:
    """Whether one of the `num_well` that are in use may be put aside: half of all must stay."""
    return num_well - 1 >= math.ceil(num_replicas / 2)


def reason_to_kill(history: History, *, enough_others: bool) -> str | None:
    """Why waiting for it is worse; None if it is not. A slow replica on a busy machine answers somebody at some time,
    or works."""
    since = [look for look in history.looks if look.at > history.answered_at]
    still, silent = _last_in_a_row(since, ("hung",)), _last_in_a_row(since, SILENT)
    if still >= (KILL_LOOKS if enough_others else KILL_ALONE_LOOKS):
        return f"it has not answered {silent} questions in a row, and its process does nothing"
    if silent >= (KILL_BUSY_LOOKS if enough_others else KILL_BUSY_ALONE_LOOKS):
        return f"it has not answered {silent} questions in a row, nor anybody else, though its process works"
    return None


def _last_in_a_row(looks: Sequence[Look], outcomes: Sequence[Outcome]) -> int:
    count = 0
    for look in reversed(looks):
        if look.outcome not in outcomes:
            break
        count += 1
    return count
