"""The rules that a recipe sets, and the user's own suite, as Great Expectations expectations over `columns`."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.contracts.recipe import Format, Validation
from pipeline.data.columns import COLUMNS
from pipeline.errors import SpecError

Split = Literal["train", "eval"]
SPLITS: tuple[Split, Split] = ("train", "eval")
MAX_SUITE_BYTES = 1 << 20
COLUMN_KWARGS = ("column", "column_A", "column_B")
COLUMN_LIST_KWARGS = ("column_list", "column_set")
STRUCTURES: dict[Format, str] = {
    "chat": "every row is an object with a list of messages",
    "preference": "every row is a prompt with a chosen and a rejected answer",
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One expectation about one file."""

    split: Split
    name: str
    says: str
    """What must hold, as a sentence."""
    type: str
    """The expectation's, as Great Expectations writes it: expect_column_values_to_be_null …"""
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def column(self) -> str | None:
        return self.kwargs.get("column")


def recipe_rules(validation: Validation, row_format: Format, *, estimated_tokens: bool) -> list[Rule]:
    """The rules for both files.

    Args:
        estimated_tokens: whether the column `tokens` is an estimate, which the rule then says.
    """
    return [rule for split in SPLITS for rule in _split_rules(validation, row_format, split, estimated_tokens)]


def _split_rules(validation: Validation, row_format: Format, split: Split, estimated_tokens: bool) -> list[Rule]:
    rules = [
        _row_count(validation, split),
        _none(split, "structure", "structure_problem", STRUCTURES[row_format]),
        _none(split, "roles", "roles_problem", "an optional system message, then user and assistant in turn"),
        _none(split, "content", "content_problem", "no message is empty"),
        _none(split, "encoding", "encoding_problem", "the text is valid UTF-8 without control characters"),
        _between(split, "shortest message", "chars_min", minimum=validation.min_chars, unit="characters"),
        _between(split, "longest message", "chars_max", maximum=validation.max_chars, unit="characters"),
    ]
    if validation.max_tokens is not None:
        unit = "tokens (estimated: one a byte)" if estimated_tokens else "tokens"
        rules.append(_between(split, "tokens", "tokens", maximum=validation.max_tokens, unit=unit))
    rules.append(
        _seldom(split, "duplicates", "duplicate_of", validation.max_duplicate_fraction, "repeat an earlier row")
    )
    rules += _choice(split, validation) if row_format == "preference" else [_one_answer(split, validation)]
    if validation.labels is not None:
        rules.append(_labels(split, validation.labels))
    if split == "train":
        rules.append(_distinct_answers(validation.min_distinct_answers))
    else:
        fraction = validation.max_overlap_fraction
        rules.append(_seldom(split, "overlap", "in_train", fraction, "have a prompt that was trained on"))
    return rules


def _one_answer(split: Split, validation: Validation) -> Rule:
    """Of chat rows. Pairs of answers may well share a prompt."""
    return _seldom(
        split,
        "conflicting answers",
        "conflicts_with",
        validation.max_conflict_fraction,
        "answer an earlier prompt differently",
    )


def _choice(split: Split, validation: Validation) -> list[Rule]:
    """Of preference rows: what is preferred to what is clear, in each row and between them."""
    return [
        _none(split, "pairs", "pair_problem", "the rejected answer is another than the chosen one"),
        _seldom(
            split,
            "conflicting choices",
            "contradicts",
            validation.max_conflict_fraction,
            "choose what an earlier row rejects, and reject what it chose",
        ),
    ]


def _row_count(validation: Validation, split: Split) -> Rule:
    minimum = validation.min_rows if split == "train" else math.ceil(validation.min_rows / 10)
    maximum = validation.max_rows
    limit = f"{minimum:,} rows at least" if maximum is None else f"{minimum:,} to {maximum:,} rows"
    return Rule(
        split=split,
        name="row count",
        says=limit,
        type="expect_table_row_count_to_be_between",
        kwargs={"min_value": minimum, "max_value": maximum},
    )


def _none(split: Split, name: str, column: str, says: str) -> Rule:
    return Rule(split=split, name=name, says=says, type="expect_column_values_to_be_null", kwargs={"column": column})


def _seldom(split: Split, name: str, column: str, fraction: float, what: str) -> Rule:
    return Rule(
        split=split,
        name=name,
        says=f"at most {100 * fraction:.4g} % of the rows {what}" if fraction else f"no rows {what}",
        type="expect_column_values_to_be_null",
        kwargs={"column": column, "mostly": 1 - fraction},
    )


def _between(
    split: Split, name: str, column: str, *, unit: str, minimum: int | None = None, maximum: int | None = None
) -> Rule:
    limit = f"at least {minimum:,}" if maximum is None else f"at most {maximum:,}"
    return Rule(
        split=split,
        name=name,
        says=f"{limit} {unit}",
        type="expect_column_values_to_be_between",
        kwargs={"column": column, "min_value": minimum, "max_value": maximum},
    )


def _labels(split: Split, labels: tuple[str, ...]) -> Rule:
    return Rule(
        split=split,
        name="labels",
        says=f"every answer is one of the recipe's {len(labels)} labels",
        type="expect_column_values_to_be_in_set",
        kwargs={"column": "answer", "value_set": list(labels)},
    )


def _distinct_answers(minimum: int) -> Rule:
    return Rule(
        split="train",
        name="distinct answers",
        says=f"at least {minimum:,} different answers",
        type="expect_column_unique_value_count_to_be_between",
        kwargs={"column": "answer", "min_value": minimum},
    )


def suite_rules(path: Path) -> list[Rule]:
    """The user's own suite: each expectation for both files, or for the one that its `meta.file` names.

    Raises:
        SpecError: no JSON object of `{"expectations": [...]}`, or an expectation that names an unknown column.
    """
    try:
        if path.stat().st_size > MAX_SUITE_BYTES:
            raise SpecError(f"the suite has {path.stat().st_size:,} bytes, expected at most {MAX_SUITE_BYTES:,}")
        suite = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SpecError(f"the suite (validation.suite_uri) is no JSON file in UTF-8: {error}") from error
    expectations = suite.get("expectations") if isinstance(suite, dict) else None
    if not isinstance(expectations, list) or not expectations:
        raise SpecError('the suite (validation.suite_uri) must be {"expectations": [{"type": …, "kwargs": {…}}, …]}')
    return [rule for number, entry in enumerate(expectations, start=1) for rule in _suite_entry(number, entry)]


def _suite_entry(number: int, entry: Any) -> list[Rule]:
    where = f"expectation {number} of the suite"
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        raise SpecError(f"{where} has no `type`, e.g. expect_column_values_to_match_regex")
    kwargs, meta = entry.get("kwargs", {}), entry.get("meta") or {}
    if not isinstance(kwargs, dict) or not isinstance(meta, dict):
        raise SpecError(f"{where}: `kwargs` and `meta` must be objects")
    _check_columns(where, kwargs)
    only = meta.get("file")
    if only not in (None, *SPLITS):
        raise SpecError(f"{where}: meta.file is {only!r}, expected 'train' or 'eval'")
    says = entry.get("description") or meta.get("notes") or _described(entry["type"], kwargs)
    name = f"suite {number}: {entry['type']}"
    return [
        Rule(split=split, name=name, says=str(says), type=entry["type"], kwargs=kwargs)
        for split in SPLITS
        if only in (None, split)
    ]


def named_columns(kwargs: dict[str, Any]) -> list[str]:
    """The columns that an expectation's arguments name."""
    names = [kwargs[key] for key in COLUMN_KWARGS if key in kwargs]
    for key in COLUMN_LIST_KWARGS:
        if isinstance(kwargs.get(key), list):
            names += kwargs[key]
    return names


def _check_columns(where: str, kwargs: dict[str, Any]) -> None:
    for name in named_columns(kwargs):
        if name not in COLUMNS:
            raise SpecError(f"{where} names the column {name!r}; there are {', '.join(COLUMNS)}")


def _described(kind: str, kwargs: dict[str, Any]) -> str:
    text = ", ".join(f"{name}={value!r}" for name, value in kwargs.items())
    return f"{kind.removeprefix('expect_').replace('_', ' ')} ({text})"
