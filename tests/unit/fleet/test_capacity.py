"""Whether a second set of replicas fits, and what happens where it does not."""

import pytest

from pipeline.errors import ReplicaFailed
from pipeline.fleet.capacity import Memory, Strategy, decide, needed

GB = 10**9


def memory(free_gb: float, replica_gb: float = 1.5) -> Memory:
    return Memory(total_bytes=20 * GB, free_bytes=int(free_gb * GB), replica_bytes=int(replica_gb * GB))


def test_a_twentieth_of_the_memory_stays_free() -> None:
    """4.1 GB free less 1 GB are two replicas of 1.5 GB, 3.9 GB are one; where nothing runs, nothing is known."""
    assert (memory(4.1).room, memory(3.9).room, memory(0.5).room) == (2, 1, 0)
    assert memory(4.1, replica_gb=0).room is None


@pytest.mark.parametrize(
    ("asked", "free_gb", "alive", "wanted", "strategy", "places"),
    [
        ("auto", 10, 2, 2, "surge", 0),
        ("auto", 3.0, 2, 2, "replace", 3),
        ("auto", 0.5, 2, 2, "replace", 2),
        ("auto", 3.0, 1, 1, "surge", 0),
        ("auto", 0.5, 0, 4, "surge", 0),
        ("surge", 0.5, 2, 2, "surge", 0),
        ("replace", 10, 3, 3, "replace", 3),
        ("replace", 3.0, 1, 1, "replace", 2),
    ],
)
def test_what_fits_decides(
    asked: Strategy, free_gb: float, alive: int, wanted: int, strategy: str, places: int
) -> None:
    """Unless the recipe does; the first version has nobody to share with."""
    found = decide(memory(free_gb), asked=asked, alive=alive, wanted=wanted)
    assert (found.strategy, found.places) == (strategy, places)


@pytest.mark.parametrize(
    ("asked", "alive", "wanted", "reason"),
    [
        ("auto", 1, 1, "no place for a replica of the new version: 0.5 of 20.0 GB are free"),
        ("replace", 1, 1, "only one serves, which cannot make place"),
        ("auto", 2, 3, "rollout.replicas is 3, but only 2 fit"),
    ],
)
def test_what_can_never_fit_is_refused_with_the_figures(asked: Strategy, alive: int, wanted: int, reason: str) -> None:
    """Nobody waits for it."""
    with pytest.raises(ReplicaFailed, match=reason):
        decide(memory(0.5), asked=asked, alive=alive, wanted=wanted)


@pytest.mark.parametrize(
    ("wanted", "places", "counts"),
    [(2, 2, [1, 1, 1, 1]), (4, 4, [1, 1, 2, 3]), (4, 6, [1, 1, 2, 4]), (1, 2, [1, 1, 1, 1])],
)
def test_replicas_follow_the_weight_and_one_stays_to_go_back_to(wanted: int, places: int, counts: list[int]) -> None:
    """At 5, 25, 50 and 100 per cent."""
    assert [needed(weight, wanted=wanted, places=places) for weight in (5, 25, 50, 100)] == counts
