"""What is said when a loss or a gradient stops being a number."""

import math
from typing import Any

import pytest
import torch

from pipeline.contracts.finetune import Finetune
from pipeline.errors import DataError
from pipeline.training.divergence import SKIPPED_IN_A_ROW, Record, refuse_endless_skips, refuse_non_finite

USUAL = [1.0, 1.2, 0.9]


def history(*norms: float | None) -> list[Record]:
    """Steps from 1 on; None is one that was skipped."""
    return [
        {"step": step, "loss": 2.0, "lr": 1e-3, **({"skipped": 1.0} if norm is None else {"grad_norm": norm})}
        for step, norm in enumerate(norms, start=1)
    ]


def said(
    shares: list[list[float]], records: list[Record], before: list[Record], *, rows: int = 2, **settings: Any
) -> str:
    """What is raised for ranks that have `rows` rows each: rank 0 the rows 0, 1, …, rank 1 the rows 100, 101, …"""
    with pytest.raises(DataError) as raised:
        refuse_non_finite(
            torch.tensor(shares),
            records,
            before,
            settings=Finetune.model_validate({"nodes": 1, **settings}),
            rows_of=lambda step, rank: [100 * rank + row for row in range(rows)],
        )
    return str(raised.value)


def at(step: int, loss: float = math.nan, norm: float = 1.0) -> Record:
    return {"step": step, "loss": loss, "lr": 5e-4, "grad_norm": norm}


def test_step_rank_rows_rate_and_norms_are_named() -> None:
    """Of the first step that is wrong, and of the rank that was; lines are counted from 1."""
    text = said([[1.0, 1.0], [1.0, math.nan]], [at(4, 2.0), at(5)], history(*USUAL))
    assert text.startswith(
        "the loss became nan at step 5 on rank 1, which had lines 101, 102 of train.jsonl; the learning rate was"
        " 0.0005, the gradient norm 1 at step 4 and 1 at the median of the steps before that: "
    )


RANKS = {
    "one of three": ([1.0, math.nan, 1.0], "on rank 1, which had lines 101, 102"),
    "two of three": ([math.inf, 1.0, math.nan], "on ranks 0, 2, which had lines 1, 2, 201, 202"),
    "all": ([math.nan, math.nan, math.nan], "on all 3 ranks, which had lines 1, 2, 101, 102, 201, 202"),
}


@pytest.mark.parametrize("case", RANKS)
def test_the_ranks_that_saw_it_are_named(case: str) -> None:
    """And the rows of no other."""
    shares, expected = RANKS[case]
    assert expected in said([[share] for share in shares], [at(4)], history(*USUAL))


def test_many_rows_are_cut_short_and_a_pair_is_one_line() -> None:
    """Twelve lines are enough to look at; preferences have two rows a line."""
    many = said([[math.nan]], [at(4)], history(*USUAL), rows=40)
    assert "lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 28 more of train.jsonl" in many
    assert "had line 1 of train.jsonl" in said([[math.nan]], [at(4)], history(*USUAL), method="dpo")


CAUSES = {
    "the base model": ([], {}, "the base model itself gives no finite number"),
    "a gradient that had grown": ([*USUAL, 400.0], {}, "the training has probably diverged"),
    "the range of fp16": (USUAL, {"precision": "fp16"}, "left the range of fp16"),
    "a loss scale that was too large": ([*USUAL, None], {"precision": "fp16"}, "the training has probably diverged"),
    "no warning": (USUAL, {}, "the gradient was as usual"),
}


@pytest.mark.parametrize("case", CAUSES)
def test_the_likely_cause_is_named_with_what_to_do(case: str) -> None:
    """By what the gradients were before."""
    norms, settings, expected = CAUSES[case]
    assert expected in said([[math.nan]], [at(len(norms) + 1)], history(*norms), **settings)


def test_a_norm_that_is_infinite_is_refused_though_the_loss_is_a_number() -> None:
    """It is all ranks' together."""
    text = said([[1.0], [1.0]], [at(4, 2.0, math.inf)], history(*USUAL))
    assert text.startswith("the gradient norm became inf at step 4 on all 2 ranks")


def test_numbers_and_skipped_steps_pass() -> None:
    """A step that fp16 lost has no norm, which is no fault."""
    settings = Finetune(nodes=1, precision="fp16")
    records = [at(1, 2.0), {"step": 2, "loss": 2.0, "lr": 1e-3, "skipped": 1.0}]
    refuse_non_finite(torch.ones(2, 2), records, [], settings=settings, rows_of=lambda step, rank: [])
    refuse_endless_skips(SKIPPED_IN_A_ROW - 1, 40)


def test_skipping_without_end_is_refused() -> None:
    """With the step at which it was given up."""
    with pytest.raises(DataError, match=f"the gradients of {SKIPPED_IN_A_ROW} steps in a row, up to step 40, were not"):
        refuse_endless_skips(SKIPPED_IN_A_ROW, 40)
