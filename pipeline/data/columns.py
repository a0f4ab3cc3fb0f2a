"""The columns that the rules look at, one row for each row of the data.

| column            | type   | what it holds                                                                          |
|-------------------|--------|----------------------------------------------------------------------------------------|
| line              | int    | the line of a JSONL file, the record of a Parquet file, from 1                         |
| structure_problem | text   | why the row is none of its format: bad JSON, no `messages`, a number for a string …    |
| roles_problem     | text   | which message has a role that may not stand there                                      |
| content_problem   | text   | which message is empty                                                                 |
| encoding_problem  | text   | invalid UTF-8, a replacement character, a control character                            |
| pair_problem      | text   | preference rows: why the two answers are no choice                                     |
| messages          | int    | how many messages                                                                      |
| chars_min         | int    | characters of the shortest message                                                     |
| chars_max         | int    | characters of the longest message                                                      |
| tokens            | int    | tokens of all messages, without those that a chat template adds; of the longer answer  |
| prompt            | text   | every message but the last, joined by line breaks                                      |
| answer            | text   | the last message, the assistant's; in preference rows the chosen answer                |
| rejected          | text   | preference rows: the other answer                                                      |
| duplicate_of      | int    | the line of an earlier row with the same prompt and the same answer (or answers)       |
| conflicts_with    | int    | the line of the first row with the same prompt, if its answer is another               |
| contradicts       | int    | preference rows: the line of an earlier row that chose what this one rejects, and back |
| in_train          | int    | held-out rows: the line of a training row with the same prompt                         |

A problem, and any of the last four, is null where there is none. A row with a structure problem has nothing else; a
row with a roles problem has no prompt and no answer. Prompts are compared in lower case with white space collapsed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl

from pipeline.data.preferences import PreferenceRow
from pipeline.data.reading import Batch, BrokenRow, Message, Row
from pipeline.data.text import comparable_column

SCHEMA: dict[str, Any] = {
    "line": pl.Int64,
    "structure_problem": pl.String,
    "roles_problem": pl.String,
    "content_problem": pl.String,
    "encoding_problem": pl.String,
    "pair_problem": pl.String,
    "messages": pl.Int32,
    "chars_min": pl.Int32,
    "chars_max": pl.Int32,
    "prompt": pl.String,
    "answer": pl.String,
    "rejected": pl.String,
}
"""What is taken from each row by itself."""

DERIVED = ("tokens", "duplicate_of", "conflicts_with", "contradicts", "in_train")
COLUMNS = (*SCHEMA, *DERIVED)

NO_TEXT = r"([\x00-\x08\x0B\x0C\x0E-\x1F\x7F-\x9F\x{FFFD}])"
"""Control characters but tab and line breaks, and U+FFFD, which stands where a decoder gave up."""

TokenCounter = Callable[[pl.DataFrame], pl.Series]
"""From a table with `prompt`, `answer` and `rejected` to the number of tokens of each row."""


def batch_table(batch: Batch, count_tokens: TokenCounter) -> pl.DataFrame:
    """All columns of `batch` that need no other batch, and keys of prompt and answers to compare batches by."""
    table = pl.DataFrame(_values(batch), schema=SCHEMA, orient="row")
    no_text = pl.coalesce(
        _first_no_text("prompt").map_elements(lambda found: _describe(found, "the prompt"), pl.String),
        _first_no_text("answer").map_elements(lambda found: _describe(found, "the answer"), pl.String),
        _first_no_text("rejected").map_elements(lambda found: _describe(found, "the rejected answer"), pl.String),
    )
    return table.with_columns(
        count_tokens(table).cast(pl.Int32).alias("tokens"),
        pl.coalesce("encoding_problem", no_text).alias("encoding_problem"),
        comparable_column(pl.col("prompt")).hash(seed=1).alias("prompt_key"),
        pl.col("answer").hash(seed=2).alias("answer_key"),
        pl.col("rejected").hash(seed=2).alias("rejected_key"),
    ).with_columns(
        pl.when(pl.col("prompt").is_not_null()).then("prompt_key"),
        pl.when(pl.col("rejected").is_not_null()).then("rejected_key"),
    )


def _first_no_text(column: str) -> pl.Expr:
    return pl.col(column).str.extract(NO_TEXT)


def _describe(found: str, where: str) -> str:
    if found == "\N{REPLACEMENT CHARACTER}":
        return f"U+FFFD in {where}: the text was once decoded with the wrong encoding"
    return f"the control character U+{ord(found):04X} in {where}"


def _values(batch: Batch) -> list[tuple[Any, ...]]:
    return [_row_values(line, row) for line, row in zip(batch.lines, batch.rows, strict=True)]


def _row_values(line: int, row: Row | BrokenRow) -> tuple[Any, ...]:
    """In the order of SCHEMA."""
    if isinstance(row, BrokenRow):
        return (line, row.structure_problem, None, None, row.encoding_problem, *[None] * 7)
    messages = row.messages
    rejected = row.rejected if isinstance(row, PreferenceRow) else None
    roles_problem = check_roles(messages)
    lengths = [len(message.content) for message in messages] or [0]
    prompt = answer = pair_problem = None
    if roles_problem is None:
        answer = messages[-1].content
        prompt = messages[0].content if len(messages) == 2 else "\n".join(each.content for each in messages[:-1])
    problem = check_content(messages)
    if rejected is not None:
        lengths.append(len(rejected))
        problem = problem or (None if rejected.strip() else "the rejected answer is empty")
        pair_problem = check_pair(answer, rejected)
    low, high = min(lengths), max(lengths)
    return (
        *(line, None, roles_problem, problem, None, pair_problem),
        *(len(messages), low, high, prompt, answer, rejected if answer is not None else None),
    )


def check_pair(chosen: str | None, rejected: str) -> str | None:
    """Two answers that differ in more than white space around them."""
    if chosen is not None and chosen.strip() == rejected.strip():
        return "the rejected answer is the chosen one"
    return None


def check_roles(messages: list[Message]) -> str | None:
    """An optional system message, then user and assistant in turn; the assistant has the last word."""
    if not messages:
        return "`messages` is empty, expected at least a user's and an assistant's"
    start = 1 if messages[0].role == "system" else 0
    for at, message in enumerate(messages[start:]):
        expected = ("user", "assistant")[at % 2]
        if message.role != expected:
            return f"message {start + at + 1} has the role {message.role[:40]!r}, expected {expected!r}"
    if messages[-1].role != "assistant":
        return f"the last message has the role {messages[-1].role!r}, expected 'assistant'"
    return None


def check_content(messages: list[Message]) -> str | None:
    for number, message in enumerate(messages, start=1):
        if not message.content.strip():
            return f"message {number} ({message.role[:40]}) is empty"
    return None


def compared(table: pl.DataFrame) -> pl.DataFrame:
    """`table` with `duplicate_of`, `conflicts_with` and `contradicts`."""
    first = pl.col("line").first()
    known = pl.col("prompt_key").is_not_null()
    same_row = first.over("prompt_key", "answer_key", "rejected_key")
    same_prompt = first.over("prompt_key")
    other_answer = pl.col("answer_key") != pl.col("answer_key").first().over("prompt_key")
    table = table.with_columns(
        pl.when(known & (same_row != pl.col("line"))).then(same_row).alias("duplicate_of"),
        pl.when(known & other_answer).then(same_prompt).alias("conflicts_with"),
    )
    return _contradicted(table)


def _contradicted(table: pl.DataFrame) -> pl.DataFrame:
    """`table` with `contradicts`: the first row of the same prompt with the same two answers the other way round."""
    sides = ["answer_key", "rejected_key"]
    pairs = table.filter(pl.col("prompt_key").is_not_null() & (pl.col("answer_key") != pl.col("rejected_key")))
    if pairs.is_empty():
        return table.with_columns(pl.lit(None, pl.Int64).alias("contradicts"))
    opposite = pairs.group_by("prompt_key", *sides).agg(pl.col("line").min().alias("contradicts"))
    opposite = opposite.rename({"answer_key": "rejected_key", "rejected_key": "answer_key"})
    table = table.join(opposite, on=["prompt_key", *sides], how="left", maintain_order="left")
    return table.with_columns(pl.when(pl.col("contradicts") < pl.col("line")).then("contradicts").alias("contradicts"))


def first_lines(table: pl.DataFrame) -> pl.DataFrame:
    """The first line of each prompt, to find held-out prompts among."""
    known = table.filter(pl.col("prompt_key").is_not_null())
    return known.group_by("prompt_key").agg(pl.col("line").min().alias("in_train"))


def with_overlap(table: pl.DataFrame, train_lines: pl.DataFrame | None) -> pl.DataFrame:
    """`table` with `in_train`, null everywhere for the training rows themselves."""
    if train_lines is None:
        return table.with_columns(pl.lit(None, pl.Int64).alias("in_train"))
    return table.join(train_lines, on="prompt_key", how="left", maintain_order="left")


def count_bytes(table: pl.DataFrame) -> pl.Series:
    """One token for each byte of UTF-8: a byte-level tokenizer never needs more, so the count errs high."""
    answer = pl.max_horizontal(pl.col("answer").str.len_bytes(), pl.col("rejected").str.len_bytes())
    return table.select(tokens=pl.col("prompt").str.len_bytes() + answer)["tokens"]


def token_counter(count_batch: Callable[[list[str]], list[int]]) -> TokenCounter:
    """Counts with a tokenizer. `count_batch` gives the number of tokens of each text."""

    def count(table: pl.DataFrame) -> pl.Series:
        counts = table.select(_counted(table[name], count_batch) for name in ("prompt", "answer", "rejected"))
        answer = pl.max_horizontal("answer", "rejected")
        return counts.select(tokens=pl.col("prompt") + answer)["tokens"]

    return count


def _counted(texts: pl.Series, count_batch: Callable[[list[str]], list[int]]) -> pl.Series:
    """The tokens of each text, null where there is none."""
    counts = iter(count_batch(texts.drop_nulls().to_list()))
    return pl.Series(texts.name, [None if text is None else next(counts) for text in texts.to_list()], pl.Int32)
