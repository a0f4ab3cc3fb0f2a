"""Ends a training whose loss or gradient is no finite number, and says what is known about why."""

import math
import statistics
from collections.abc import Callable

import torch

from pipeline.contracts.finetune import Finetune
from pipeline.errors import DataError

Record = dict[str, float]
"""Of a step: step, loss, lr; grad_norm, or `skipped` where the loss scale was too large for fp16."""

LINES_SHOWN = 12
BEFORE = 10
"""Steps that say what was usual."""
GROWN = 10.0
"""A gradient so many times its usual size says where it came from."""
SKIPPED_IN_A_ROW = 16
"""The loss scale starts at 2**16 and halves each time."""


def refuse_non_finite(
    shares: torch.Tensor,
    records: list[Record],
    history: list[Record],
    *,
    settings: Finetune,
    rows_of: Callable[[int, int], list[int]],
) -> None:
    """Looks at the steps since the last exchange; all ranks do, and see the same.

    Args:
        shares: (ranks, steps): each rank's share of each step's loss.
        records: of those steps.
        history: of the steps before.
        rows_of: the rows that a rank took in a step, given the step and the rank.

    Raises:
        DataError: the loss or the gradient of a step is infinite or no number.
    """
    for offset, record in enumerate(records):
        ranks = (~torch.isfinite(shares[:, offset])).nonzero()[:, 0].tolist()
        what, value = "loss", record["loss"]
        if not ranks:
            what, value = "gradient norm", record.get("grad_norm", 0.0)
            ranks = list(range(len(shares)))
        if not math.isfinite(value):
            step = int(record["step"])
            rows = sorted({row for rank in ranks for row in rows_of(step, rank)})
            before = (history + records[:offset])[-BEFORE:]
            raise DataError(
                f"the {what} became {value} at step {step} on {_named(ranks, len(shares))}, which had"
                f" {_lines(rows, settings)}; the learning rate was {record['lr']:.4g}, the gradient norm"
                f" {_norms(before)}: {_cause(what, before, settings)}"
            )


def refuse_endless_skips(in_a_row: int, step: int) -> None:
    """Ends a training in fp16 that never finds a loss scale; all ranks skip the same steps.

    Args:
        in_a_row: how many steps were skipped, up to `step`.

    Raises:
        DataError: SKIPPED_IN_A_ROW or more.
    """
    if in_a_row >= SKIPPED_IN_A_ROW:
        raise DataError(
            f"the gradients of {in_a_row} steps in a row, up to step {step}, were not finite in fp16 although the loss"
            " scale was halved each time: use finetune.precision bf16 or fp32, or lower finetune.learning_rate"
        )


def _named(ranks: list[int], world_size: int) -> str:
    if len(ranks) == world_size > 1:
        return f"all {world_size} ranks"
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))


def _lines(rows: list[int], settings: Finetune) -> str:
    """Rows as line numbers of train.jsonl; a line of preferences makes two rows."""
    rows_per_line = 2 if settings.method == "dpo" else 1
    lines = sorted({row // rows_per_line + 1 for row in rows})
    more = f" and {len(lines) - LINES_SHOWN} more" if len(lines) > LINES_SHOWN else ""
    return f"line{'s' * (len(lines) > 1)} {', '.join(map(str, lines[:LINES_SHOWN]))}{more} of train.jsonl"


def _norms(before: list[Record]) -> str:
    if not before:
        return "is not known, since no step was taken before"
    last = before[-1]
    told = f"{last['grad_norm']:.4g}" if "grad_norm" in last else "too large for fp16"
    usual = _usual(before)
    return f"{told} at step {last['step']:.0f}" + (
        "" if usual is None else f" and {usual:.4g} at the median of the steps before that"
    )


def _usual(before: list[Record]) -> float | None:
    norms = [record["grad_norm"] for record in before[:-1] if "grad_norm" in record]
    return statistics.median(norms) if norms else None


def _cause(what: str, before: list[Record], settings: Finetune) -> str:
    if not before:
        return (
            "the base model itself gives no finite number for these rows: its weights are damaged, or too large for"
            f" precision {settings.precision}"
        )
    last, usual = before[-1].get("grad_norm", math.inf), _usual(before)
    if usual is not None and last > GROWN * usual:
        return (
            "the gradient had grown, so the training has probably diverged: lower finetune.learning_rate, lengthen"
            " finetune.warmup_fraction, or lower finetune.gradient_clipping"
        )
    if settings.precision == "fp16" and what == "loss":
        return "a value has probably left the range of fp16, which ends at 65504: use finetune.precision bf16 or fp32"
    return (
        "the gradient was as usual, so the step before was probably too large, or these rows are not like the others:"
        " look at the rows, lower finetune.learning_rate, or use precision fp32"
    )
