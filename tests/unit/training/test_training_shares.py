"""Who takes which rows, where ranks are not equally fast."""

from collections import Counter

import numpy as np
import pytest

from pipeline.contracts.finetune import Finetune
from pipeline.training.batches import make_schedule
from pipeline.training.place import Place
from pipeline.training.shares import Shares, deal
from pipeline.training.speeds import Speeds

LENGTHS = np.random.default_rng(0).integers(4, 13, size=64)


def settings(**changes: object) -> Finetune:
    fields = {"nodes": 1, "batch_size": 12, "epochs": 1, "max_seq_len": 16, "balance": "measured"}
    return Finetune.model_validate({**fields, **changes})


def shares(chosen: Finetune, speeds: tuple[float, ...] | None, *, data_ranks: int) -> Shares:
    return Shares(make_schedule(LENGTHS, chosen), chosen, data_ranks, speeds)


DEALT = {
    "one part": (5, (7.0,), (5,)),
    "twice as fast": (12, (2.0, 1.0), (8, 4)),
    "a third of the speed": (8, (1.0, 3.0), (2, 6)),
    "three speeds": (12, (1.0, 2.0, 3.0), (2, 4, 6)),
    "too slow for one sequence": (8, (100.0, 1.0), (8, 0)),
    "a little faster is not worth a sequence": (8, (1.1, 1.0), (4, 4)),
    "fewer sequences than parts": (2, (1.0, 1.0, 1.0), (1, 1, 0)),
}


@pytest.mark.parametrize("case", DEALT)
def test_sequences_are_dealt_in_proportion_to_speed(case: str) -> None:
    """Each of them once, to the part that is done with it the soonest."""
    count, speeds, expected = DEALT[case]
    dealt = deal(count, speeds)
    assert tuple(map(len, dealt)) == expected
    assert sorted(index for part in dealt for index in part) == list(range(count))


@pytest.mark.parametrize(("count", "parts"), [(12, 4), (13, 4), (3, 5), (64, 3)])
def test_equal_speeds_give_the_same_shares_as_no_speeds(count: int, parts: int) -> None:
    """Every n-th sequence, whatever the speed is."""
    for speed in (1.0, 0.1, 3.7e11):
        strides = tuple(tuple(range(part, count, parts)) for part in range(parts))
        assert deal(count, (speed,) * parts) == strides


@pytest.mark.parametrize("accumulation", [1, 2])
def test_equal_speeds_share_a_step_as_even_balance_does(accumulation: int) -> None:
    """Micro-batch by micro-batch."""
    chosen = settings(gradient_accumulation=accumulation)
    even, measured = shares(chosen, None, data_ranks=3), shares(chosen, (5.0, 5.0, 5.0), data_ranks=3)
    for rank in range(3):
        assert measured.of(2, rank) == even.of(2, rank)
        assert len(even.of(2, rank)) == accumulation


@pytest.mark.parametrize("speeds", [(3.0, 1.0), (100.0, 1.0), (1.0, 2.0, 4.0, 1.0, 1.0)], ids=str)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_uneven_shares_cover_every_step_exactly_once(speeds: tuple[float, ...], accumulation: int) -> None:
    """Whatever the speeds, no row is lost and none is taken twice; micro-batches of a rank are alike in number."""
    dealt = shares(settings(gradient_accumulation=accumulation), speeds, data_ranks=len(speeds))
    for step, sequences in enumerate(dealt.schedule.steps, start=1):
        micro_batches = [dealt.of(step, rank) for rank in range(len(speeds))]
        taken = Counter(sequence for rank in micro_batches for micro in rank for sequence in micro)
        assert taken == Counter(sequences)
        for rank in micro_batches:
            assert max(map(len, rank)) - min(map(len, rank)) <= 1


def test_a_group_of_ranks_is_as_fast_as_its_slowest() -> None:
    """Slices of a layer lie on neighbours, the stages of a pipeline half of the ranks apart."""
    speeds = Speeds(peaks=(0.0,) * 4, measured=(9.0, 3.0, 1.0, 5.0))
    sliced = settings(nodes=4, parallelism={"tensor": 2}).parallelism
    staged = settings(nodes=4, parallelism={"pipeline": 2}).parallelism
    assert speeds.of_data_ranks(Place(0, 4, sliced)) == (3.0, 1.0)
    assert speeds.of_data_ranks(Place(0, 4, staged)) == (1.0, 3.0)


def test_a_part_that_is_too_slow_has_empty_micro_batches() -> None:
    """One for each that the others have, so that it takes part in every exchange."""
    dealt = shares(settings(gradient_accumulation=2), (100.0, 0.1), data_ranks=2)
    assert dealt.of(1, 1) == [[], []]
    assert [len(micro) for micro in dealt.of(1, 0)] == [6, 6]


def test_the_shares_are_told_with_the_speeds() -> None:
    """In words for the log and as figures."""
    dealt = shares(settings(), (6.0e9, 3.0e9), data_ranks=2)
    assert str(dealt) == (
        "data rank 0: 6 GFLOP/s, 8 of 12 sequences a step; data rank 1: 3 GFLOP/s, 4 of 12 sequences a step"
    )
    assert dealt.figures == {
        "data_rank_0_gflops": 6.0,
        "data_rank_0_sequences": 8,
        "data_rank_1_gflops": 3.0,
        "data_rank_1_sequences": 4,
    }
    assert shares(settings(), None, data_ranks=2).figures == {}
