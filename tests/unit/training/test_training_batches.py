"""The order of the rows: complete, repeatable, and the same for any number of ranks."""

from collections import Counter

import numpy as np
import pytest

from pipeline.contracts.finetune import Finetune
from pipeline.training.batches import make_schedule

LENGTHS = np.random.default_rng(0).integers(4, 60, size=640)
BATCHINGS = ("length_grouped", "packing")


def settings(**changes: object) -> Finetune:
    return Finetune.model_validate({"nodes": 1, "batch_size": 8, "epochs": 2, "max_seq_len": 64, **changes})


@pytest.mark.parametrize("batching", BATCHINGS)
def test_the_order_follows_from_the_seed_alone(batching: str) -> None:
    """The same twice, and on four nodes; another with another seed."""
    one = make_schedule(LENGTHS, settings(batching=batching))
    assert make_schedule(LENGTHS, settings(batching=batching)) == one
    assert make_schedule(LENGTHS, settings(batching=batching, nodes=4)) == one
    assert make_schedule(LENGTHS, settings(batching=batching, seed=1)) != one


@pytest.mark.parametrize("batching", BATCHINGS)
def test_the_ranks_shares_of_a_step_make_up_the_step(batching: str) -> None:
    """Nothing is left out, nothing taken twice, and the shares are equal in number."""
    schedule = make_schedule(LENGTHS, settings(batching=batching))
    shares = [schedule.share(3, part, 4) for part in range(4)]
    assert Counter(sequence for share in shares for sequence in share) == Counter(schedule.steps[3])
    assert {len(share) for share in shares} == {2}


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("parts", [1, 2, 3, 5, 7, 8, 11])
def test_any_number_of_ranks_shares_each_step_without_loss_or_repetition(batching: str, parts: int) -> None:
    """Also one that does not divide the batch, or exceeds it: shares differ by one sequence at most, or are empty."""
    schedule = make_schedule(LENGTHS, settings(batching=batching))
    for step, sequences in enumerate(schedule.steps):
        shares = [schedule.share(step, part, parts) for part in range(parts)]
        assert Counter(sequence for share in shares for sequence in share) == Counter(sequences)
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_a_resumed_training_goes_on_with_what_is_left_at_any_number_of_ranks() -> None:
    """Three ranks until step 70, then five: every row once an epoch, as with one rank all the way."""
    schedule, again = make_schedule(LENGTHS, settings()), make_schedule(LENGTHS, settings(nodes=8))
    seen: Counter[int] = Counter()
    for source, steps, parts in ((schedule, range(70), 3), (again, range(70, len(again.steps)), 5)):
        for step in steps:
            for part in range(parts):
                seen.update(row for sequence in source.share(step, part, parts) for row in sequence)
    assert seen == dict.fromkeys(range(640), 2)


@pytest.mark.parametrize("parts", [1, 3, 16])
def test_the_two_answers_of_a_pair_are_never_parted(parts: int) -> None:
    """A step has as many pairs as the batch size says, each chosen answer with its rejected one behind it."""
    schedule = make_schedule(LENGTHS, settings(method="dpo"))
    seen: Counter[int] = Counter()
    for step, pairs in enumerate(schedule.steps):
        assert len(pairs) == 8
        for part in range(parts):
            for chosen, rejected in schedule.share(step, part, parts):
                assert (chosen % 2, rejected) == (0, chosen + 1)
                seen.update((chosen, rejected))
    assert seen == dict.fromkeys(range(640), 2)


def test_every_row_is_seen_once_an_epoch() -> None:
    """640 rows in steps of 8, twice over."""
    schedule = make_schedule(LENGTHS, settings())
    seen = Counter(row for step in schedule.steps for sequence in step for row in sequence)
    assert seen == dict.fromkeys(range(640), 2)


def test_length_grouping_leaves_little_padding() -> None:
    """Less than a tenth; with random batches it would be almost half."""
    schedule = make_schedule(LENGTHS, settings())
    padded = sum(len(step) * max(LENGTHS[row] for (row,) in step) for step in schedule.steps)
    assert 1 - 2 * LENGTHS.sum() / padded < 0.1


def test_packed_sequences_are_full_and_never_too_long() -> None:
    """Above nine tenths of the length on average, and never beyond it."""
    schedule = make_schedule(LENGTHS, settings(batching="packing"))
    filled = [sum(LENGTHS[row] for row in sequence) for step in schedule.steps for sequence in step]
    assert max(filled) <= 64
    assert np.mean(filled) > 0.9 * 64


def test_less_data_than_a_batch_still_makes_a_step() -> None:
    """Rows are repeated to fill it."""
    schedule = make_schedule(LENGTHS[:3], settings(epochs=1))
    assert [len(step) for step in schedule.steps] == [8]
