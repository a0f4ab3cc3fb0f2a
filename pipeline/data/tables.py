"""One pass over a data file: its columns for the rules, and its rows written out again in normal form."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.contracts.recipe import Format
from pipeline.data.chat import CHAT
from pipeline.data.columns import TokenCounter, batch_table, compared, token_counter
from pipeline.data.preferences import PREFERENCE
from pipeline.data.reading import Batch, Form, Row, encoder, read_batches
from pipeline.errors import SpecError

EXCERPT_CHARS = 240
FORMS: dict[Format, Form] = {"chat": CHAT, "preference": PREFERENCE}
LONG_COLUMNS = ("prompt", "rejected")
"""Kept only if a rule asks for them."""


def read_table(
    source_path: Path,
    suffix: str,
    form: Form,
    *,
    rows_path: Path,
    count_tokens: TokenCounter,
    kept: Collection[str] = (),
    on_batch: Callable[[Batch], None],
) -> pl.DataFrame:
    """The table of every row but for `in_train`, while `rows_path` gets the readable rows, one a line.

    Only one batch of rows is in memory at a time. The table itself keeps the answers, and those of LONG_COLUMNS that
    are `kept`.
    """
    tables: list[pl.DataFrame] = []
    encode = encoder()
    with rows_path.open("wb") as rows_file:
        for batch in read_batches(source_path, suffix, form):
            readable = [row for row in batch.rows if isinstance(row, Row)]
            rows_file.write(encode.encode_lines(readable))
            table = batch_table(batch, count_tokens)
            tables.append(table.drop(name for name in LONG_COLUMNS if name not in kept))
            on_batch(batch)
    return compared(pl.concat(tables, rechunk=False))


def excerpts(source_path: Path, suffix: str, form: Form, lines: set[int]) -> dict[int, str]:
    """The beginning of each of `lines`, as it stands in the file."""
    if suffix == ".jsonl":
        return _line_excerpts(source_path, lines)
    found: dict[int, str] = {}
    for batch in read_batches(source_path, suffix, form):
        for line, row in zip(batch.lines, batch.rows, strict=True):
            if line in lines and isinstance(row, Row):
                found[line] = encoder().encode(row).decode()[:EXCERPT_CHARS]
        if len(found) == len(lines):
            break
    return found


def _line_excerpts(source_path: Path, lines: set[int]) -> dict[int, str]:
    found: dict[int, str] = {}
    number, at_start, last = 0, True, max(lines, default=0)
    with source_path.open("rb") as file:
        while number <= last and (piece := file.readline(1 << 20)):
            number += at_start
            if at_start and number in lines:
                found[number] = piece.decode(errors="replace").rstrip()[:EXCERPT_CHARS]
            at_start = piece.endswith(b"\n")
    return found


def file_tokenizer(folder: Path) -> TokenCounter | None:
    """Counts with the tokenizer.json of a model folder; None if it has none.

    Raises:
        SpecError: the file is none that can be read.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        tokenizer: Any = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise SpecError(f"{path} is no tokenizer that can be read: {error}; copy the model's own anew") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count_batch(texts: list[str]) -> list[int]:
        return [len(encoding) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return token_counter(count_batch)
