"""When a replica is found bad, and when it may be put aside."""

from collections import deque

import pytest

from pipeline.fleet.replica_findings import (
    HUNG_LOOKS,
    KILL_ALONE_LOOKS,
    KILL_BUSY_ALONE_LOOKS,
    KILL_BUSY_LOOKS,
    KILL_LOOKS,
    SLOW_MIN_REQUESTS,
    SLOW_WINDOW_S,
    History,
    Look,
    Outcome,
    finding,
    may_leave,
    reason_to_kill,
)

NOW = 1000.0
LETTERS: dict[str, Outcome] = {"w": "well", "h": "hung", "b": "busy", "m": "mute", "a": "away", "x": "wrong"}


def history(looks: str = "w", latencies_s: tuple[float, ...] = ()) -> History:
    """One look a second, the last one now; a letter each: well, hung, busy, mute, away, x for wrong."""
    first = NOW - len(looks) + 1
    return History(
        looks=deque(Look(first + index, LETTERS[letter], "it lies") for index, letter in enumerate(looks)),
        latencies_s=deque((NOW - 1, latency) for latency in latencies_s),
    )


@pytest.mark.parametrize(
    ("looks", "kind"),
    [
        ("wwww", None),
        ("wwhh", None),
        ("w" + "h" * HUNG_LOOKS, "hung"),
        ("w" + "b" * HUNG_LOOKS, "hung"),
        ("w" + "m" * HUNG_LOOKS, "hung"),
        ("hhhw", None),
        ("wwx", "wrong"),
        ("xw", None),
        ("waaaawaawa", "crashing"),
        ("waaaaaaaaa", None),
        ("wawaw", None),
    ],
)
def test_looks_tell_what_is_wrong(looks: str, kind: str | None) -> None:
    """One look without an answer, one that has been started anew, or a long absence is no reason."""
    found = finding(history(looks), [], NOW)
    assert (found.kind if found else None) == kind


def test_crashes_of_long_ago_are_forgotten() -> None:
    """They are counted over a minute."""
    assert finding(history("wawawa" + "w" * 100), [], NOW) is None


@pytest.mark.parametrize(
    ("own_s", "others_s", "is_slow"),
    [
        (1.0, 0.1, True),
        (0.29, 0.1, False),
        (0.3, 0.01, True),
        (0.05, 0.001, False),
        (10.0, 5.0, False),
    ],
)
def test_a_replica_is_slow_next_to_its_like(own_s: float, others_s: float, is_slow: bool) -> None:
    """By a ratio and by an absolute difference, so that neither noise nor long answers count."""
    many = SLOW_MIN_REQUESTS
    found = finding(history(latencies_s=(own_s,) * many), [history(latencies_s=(others_s,) * many)], NOW)
    assert (found is not None and found.kind == "slow") == is_slow


def test_few_or_old_requests_say_nothing_of_speed() -> None:
    """On either side."""
    enough, few = (5.0,) * SLOW_MIN_REQUESTS, (5.0,) * (SLOW_MIN_REQUESTS - 1)
    fast = history(latencies_s=(0.1,) * SLOW_MIN_REQUESTS)
    assert finding(history(latencies_s=few), [fast], NOW) is None
    assert finding(history(latencies_s=enough), [history(latencies_s=(0.1,))], NOW) is None
    assert finding(history(latencies_s=enough), [fast], NOW + SLOW_WINDOW_S + 1) is None


@pytest.mark.parametrize(
    ("num_replicas", "num_well", "may"),
    [
        (1, 1, False),
        (2, 2, True),
        (2, 1, False),
        (3, 3, True),
        (3, 2, False),
        (4, 4, True),
        (4, 3, True),
        (4, 2, False),
    ],
)
def test_half_of_the_replicas_stay_in_use(num_replicas: int, num_well: int, may: bool) -> None:
    """The only one always does."""
    assert may_leave(num_replicas, num_well) is may


@pytest.mark.parametrize(
    ("looks", "with_others", "alone"),
    [
        ("h" * (KILL_LOOKS - 1), False, False),
        ("h" * KILL_LOOKS, True, False),
        ("h" * KILL_ALONE_LOOKS, True, True),
        ("h" * (KILL_LOOKS - 1) + "b" + "h" * (KILL_LOOKS - 1), False, False),
        ("hhb" * (KILL_BUSY_LOOKS // 3 - 1), False, False),
        ("b" * KILL_BUSY_LOOKS, True, False),
        ("b" * KILL_BUSY_ALONE_LOOKS, True, True),
        ("m" * KILL_BUSY_LOOKS, True, False),
        ("h" * KILL_LOOKS + "w", False, False),
    ],
)
def test_who_does_not_answer_is_killed_soon_if_it_does_nothing_and_late_if_it_works(
    looks: str, with_others: bool, alone: bool
) -> None:
    """Later still where too few others are well: a machine that is too busy makes all of them look hung."""
    assert (reason_to_kill(history(looks), enough_others=True) is not None) is with_others
    assert (reason_to_kill(history(looks), enough_others=False) is not None) is alone


@pytest.mark.parametrize("letter", ["h", "b"])
def test_who_has_answered_a_client_meanwhile_is_not_killed(letter: str) -> None:
    """Its health may be late where it has much to answer."""
    silent = history(letter * KILL_BUSY_LOOKS)
    silent.answered_at = NOW - KILL_LOOKS + 1
    assert reason_to_kill(silent, enough_others=True) is None


def test_how_long_a_replica_has_been_well_counts_from_the_last_bad_look() -> None:
    """A new one counts from its first."""
    assert history("whww").well_s(NOW) == 2.0
    assert history("www").well_s(NOW) == 2.0
