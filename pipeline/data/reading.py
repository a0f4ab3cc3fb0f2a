"""Reads rows from JSONL and Parquet in batches. A row that cannot be read is a finding, never a crash.

JSONL has one row a line, Parquet one a record. What a row must hold is its form's affair (`pipeline.data.chat`,
`pipeline.data.preferences`); other fields and columns are ignored, and so are blank lines.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from pipeline.errors import SpecError

BATCH_ROWS = 20_000
BATCH_BYTES = 32 << 20
MAX_LINE_BYTES = 16 << 20
"""A longer line is a finding; it is never held in memory."""

SUFFIXES = (".jsonl", ".parquet")


class Message(msgspec.Struct, gc=False):
    role: str
    content: str


class Row(msgspec.Struct, gc=False):
    """A chat that ends with the answer that is to be learnt."""

    messages: list[Message]


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """A row that holds no messages that could be looked at, and why."""

    structure_problem: str | None = None
    encoding_problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Form:
    """How the rows of one format are read."""

    columns: tuple[str, ...]
    """That a Parquet file may have."""
    needed: tuple[str, ...]
    """Those of them without which no row can be read."""
    decode: Callable[[bytes], Row | BrokenRow]
    """From a line of JSON. It raises what msgspec raises."""
    convert: Callable[[dict[str, Any]], Row | BrokenRow]
    """From a record of Parquet. It raises what msgspec raises."""
    explain: Callable[[Any], BrokenRow | None]
    """What is wrong with the shape of a decoded row; None if nothing is."""


@dataclass(slots=True)
class Batch:
    """Consecutive rows."""

    rows: list[Row | BrokenRow] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """Of each row: the line in a JSONL file, the record's number in a Parquet file, from 1."""
    done_bytes: int = 0
    """How much of the file lies behind, this batch included."""

    def add(self, line: int, row: Row | BrokenRow) -> None:
        self.lines.append(line)
        self.rows.append(row)


def suffix_of(uri: str) -> str:
    """`.jsonl` or `.parquet`.

    Raises:
        SpecError: any other.
    """
    suffix = Path(uri).suffix.lower()
    if suffix not in SUFFIXES:
        raise SpecError(f"{uri}: files named *{suffix or uri[-12:]} are not understood; expected .jsonl or .parquet")
    return suffix


def read_batches(path: Path, suffix: str, form: Form, batch_rows: int = BATCH_ROWS) -> Iterator[Batch]:
    """Every row of the file, once, in order."""
    if suffix == ".parquet":
        return _parquet_batches(path, form, batch_rows)
    return _jsonl_batches(path, form, batch_rows)


def _jsonl_batches(path: Path, form: Form, batch_rows: int) -> Iterator[Batch]:
    decode = form.decode
    batch, start = Batch(), 0
    with path.open("rb") as file:
        for number, line in _lines(file):
            if line is None:
                batch.add(number, BrokenRow(f"the line is longer than {MAX_LINE_BYTES:,} bytes"))
            elif not line.isspace():
                try:
                    batch.add(number, decode(line))
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    batch.add(number, explain_line(line, form, error))
            if len(batch.rows) >= batch_rows or file.tell() - start >= BATCH_BYTES:
                batch.done_bytes = start = file.tell()
                yield batch
                batch = Batch()
        batch.done_bytes = file.tell()
    yield batch


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines; None for one that is too long."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) <= MAX_LINE_BYTES:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES + 1)
        yield number, None


def explain_line(line: bytes, form: Form, error: Exception) -> BrokenRow:
    """Why `line` is no row, in words; `error` is what the decoder said."""
    if line.startswith(b"\xef\xbb\xbf"):
        return BrokenRow(encoding_problem="the file starts with a byte order mark; save it as UTF-8 without one")
    try:
        text = line.decode()
    except UnicodeDecodeError as bad:
        byte = line[bad.start]
        return BrokenRow(encoding_problem=f"invalid UTF-8: byte 0x{byte:02x} at column {bad.start + 1}")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        return BrokenRow("not valid JSON: nested too deeply")
    except ValueError as bad:
        cut = "" if line.endswith(b"\n") else "; the file ends in the middle of the line"
        return BrokenRow(f"not valid JSON: {bad}{cut}")
    return form.explain(value) or _explain_rest(text, error)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _explain_rest(text: str, error: Exception) -> BrokenRow:
    """Only the strict decoder minds: half of a surrogate pair, or something rarer."""
    if "\\ud" in text.lower():
        return BrokenRow(encoding_problem="a \\ud800–\\udfff escape without its other half, which is no character")
    return BrokenRow(f"not a row: {error}")


def explain_messages(name: str, messages: Any) -> BrokenRow | None:
    """What is wrong with the shape of a list of messages; None if nothing is."""
    if not isinstance(messages, list):
        return BrokenRow(f"`{name}` is {kind_of(messages)}, expected a list")
    where = "message" if name == "messages" else f"`{name}` message"
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            return BrokenRow(f"{where} {number} is {kind_of(message)}, expected an object with `role` and `content`")
        for part in ("role", "content"):
            if part not in message:
                return BrokenRow(f"{where} {number} has no `{part}`; it has {names_of(message)}")
            if not isinstance(message[part], str):
                return BrokenRow(f"{where} {number}: `{part}` is {kind_of(message[part])}, expected a string")
    return None


def kind_of(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def names_of(value: dict[str, Any]) -> str:
    return ", ".join(repr(str(name)[:40]) for name in list(value)[:5]) or "nothing"


def _parquet_batches(path: Path, form: Form, batch_rows: int) -> Iterator[Batch]:
    """A file that is no Parquet, or breaks off, gives one broken row where reading ended."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number, size_bytes = 0, path.stat().st_size
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [name for name in form.needed if name not in names]:
                found, wanted = ", ".join(map(repr, names[:8])), ", ".join(f"`{name}`" for name in missing)
                yield _broken_file(1, f"the file has the columns {found}; expected {wanted}", size_bytes)
                return
            total = max(1, file.metadata.num_rows)
            columns = [name for name in form.columns if name in names]
            for records in file.iter_batches(batch_size=batch_rows, columns=columns):
                batch = Batch()
                for record in records.to_pylist():
                    number += 1
                    batch.add(number, _parquet_row(record, form))
                batch.done_bytes = size_bytes * number // total
                yield batch
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).partition("\n")[0]
        yield _broken_file(number + 1, f"not readable as Parquet from here on: {reason}", size_bytes)


def _parquet_row(record: dict[str, Any], form: Form) -> Row | BrokenRow:
    try:
        return form.convert(record)
    except msgspec.ValidationError as error:
        return form.explain(record) or BrokenRow(f"not a row: {error}")
    except UnicodeDecodeError as error:
        return BrokenRow(encoding_problem=f"invalid UTF-8: {error.reason}")


def _broken_file(line: int, reason: str, size_bytes: int) -> Batch:
    return Batch(rows=[BrokenRow(reason)], lines=[line], done_bytes=size_bytes)


def encoder() -> msgspec.json.Encoder:
    """For writing rows back, one a line."""
    return msgspec.json.Encoder()
