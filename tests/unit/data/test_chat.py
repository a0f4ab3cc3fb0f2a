"""Reading chat rows: what cannot be read is a finding with a line number."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import reading
from pipeline.data.chat import CHAT
from pipeline.data.reading import BrokenRow, Row, read_batches, suffix_of
from pipeline.errors import SpecError
from tests.chat_files import chat, good_rows, write_jsonl

BROKEN_LINES = {
    "bad JSON": (b"{]\n", "not valid JSON"),
    "cut off": (b'{"messages": [{"role": "us', "ends in the middle of the line"),
    "not an object": (b"[1, 2]\n", "the row is a list, expected an object"),
    "no messages": (b'{"prompt": "a", "answer": "b"}\n', "no `messages`; it has 'prompt', 'answer'"),
    "messages no list": (b'{"messages": "hello"}\n', "`messages` is a string, expected a list"),
    "message no object": (b'{"messages": ["hello"]}\n', "message 1 is a string, expected an object"),
    "no role": (b'{"messages": [{"content": "a"}]}\n', "message 1 has no `role`; it has 'content'"),
    "number": (b'{"messages": [{"role": "user", "content": 7}]}\n', "`content` is a number, expected a string"),
    "null": (b'{"messages": [{"role": "user", "content": null}]}\n', "`content` is null, expected a string"),
    "not a number": (b"NaN\n", "NaN is no JSON number"),
    "deep": (b"[" * 100_000 + b"\n", "nested too deeply"),
}
BROKEN_TEXT = {
    "latin-1": (b'{"messages": [{"role": "user", "content": "caf\xe9"}]}\n', "byte 0xe9 at column 47"),
    "half a surrogate": (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}\n', "without its other half"),
    "byte order mark": (b'\xef\xbb\xbf{"messages": []}\n', "byte order mark"),
    "utf-16": ('{"messages": []}\n'.encode("utf-16"), "invalid UTF-8: byte 0xff"),
}


def rows_of(path: Path, batch_rows: int = 20_000) -> list[tuple[int, Row | BrokenRow]]:
    return [
        (line, row)
        for batch in read_batches(path, suffix_of(path.name), CHAT, batch_rows)
        for line, row in zip(batch.lines, batch.rows, strict=True)
    ]


@pytest.mark.parametrize("name", BROKEN_LINES)
def test_a_row_of_the_wrong_shape_is_a_structure_problem_at_its_line(tmp_path: Path, name: str) -> None:
    """The rows around it are read as ever."""
    line, expected = BROKEN_LINES[name]
    rows = rows_of(write_jsonl(tmp_path / "a.jsonl", [*good_rows(2), line]))
    assert [isinstance(row, Row) for _, row in rows] == [True, True, False]
    number, row = rows[2]
    assert isinstance(row, BrokenRow)
    assert number == 3
    assert expected in str(row.structure_problem)


@pytest.mark.parametrize("name", BROKEN_TEXT)
def test_text_that_is_no_utf_8_is_an_encoding_problem(tmp_path: Path, name: str) -> None:
    """Invalid bytes, a byte order mark, half a character."""
    line, expected = BROKEN_TEXT[name]
    _, row = rows_of(write_jsonl(tmp_path / "a.jsonl", [line]))[0]
    assert isinstance(row, BrokenRow)
    assert expected in str(row.encoding_problem)


def test_blank_lines_are_passed_over_but_counted(tmp_path: Path) -> None:
    """An editor leaves them; line numbers still agree with the editor's."""
    rows = rows_of(write_jsonl(tmp_path / "a.jsonl", [b"\n", chat("a", "b"), b"  \n", chat("c", "d"), b"\n"]))
    assert [line for line, _ in rows] == [2, 4]


def test_the_last_line_needs_no_line_break(tmp_path: Path) -> None:
    """A whole row at the end of the file is a row."""
    rows = rows_of(write_jsonl(tmp_path / "a.jsonl", [chat("a", "b"), b'{"messages": []}']))
    assert all(isinstance(row, Row) for _, row in rows)


def test_a_line_beyond_all_measure_is_a_finding_and_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without line breaks would otherwise be read whole."""
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 200)
    rows = rows_of(write_jsonl(tmp_path / "a.jsonl", [chat("a", "b"), b"x" * 1000 + b"\n", chat("c", "d")]))
    assert [line for line, _ in rows] == [1, 2, 3]
    assert isinstance(rows[1][1], BrokenRow)
    assert "longer than 200 bytes" in str(rows[1][1].structure_problem)


def test_batches_hold_every_row_once_in_order(tmp_path: Path) -> None:
    """Whatever the batch's size; the last one says that all bytes are read."""
    path = write_jsonl(tmp_path / "a.jsonl", good_rows(25))
    batches = list(read_batches(path, ".jsonl", CHAT, batch_rows=10))
    assert [line for batch in batches for line in batch.lines] == list(range(1, 26))
    assert batches[-1].done_bytes == path.stat().st_size


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_gives_the_same_rows_as_jsonl(tmp_path: Path) -> None:
    """A list of structs in the column `messages`; other columns are ignored."""
    rows = good_rows(25)
    parquet = write_parquet(tmp_path / "a.parquet", {"id": list(range(25)), "messages": [r["messages"] for r in rows]})
    jsonl = write_jsonl(tmp_path / "a.jsonl", rows)
    assert rows_of(parquet, batch_rows=10) == rows_of(jsonl)


def test_parquet_without_messages_says_which_columns_it_has(tmp_path: Path) -> None:
    """One finding for the file."""
    ((line, row),) = rows_of(write_parquet(tmp_path / "a.parquet", {"text": ["a"], "label": ["b"]}))
    assert isinstance(row, BrokenRow)
    assert line == 1
    assert row.structure_problem == "the file has the columns 'text', 'label'; expected `messages`"


def test_parquet_rows_of_the_wrong_shape_are_findings(tmp_path: Path) -> None:
    """A null, and a struct without a role."""
    rows = rows_of(write_parquet(tmp_path / "a.parquet", {"messages": [None, [{"content": "a"}]]}))
    problems = [row.structure_problem for _, row in rows if isinstance(row, BrokenRow)]
    assert problems == ["`messages` is null, expected a list", "message 1 has no `role`; it has 'content'"]


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_parquet_file_is_a_finding(tmp_path: Path, keep: float) -> None:
    """Its end holds the index, so nothing of it can be read."""
    path = write_parquet(tmp_path / "a.parquet", {"messages": [row["messages"] for row in good_rows(50)]})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    _, row = rows_of(path)[-1]
    assert isinstance(row, BrokenRow)
    assert "not readable as Parquet" in str(row.structure_problem)


def test_a_file_of_another_kind_is_refused_by_name() -> None:
    """Rather than guessed at."""
    with pytest.raises(SpecError, match=r"expected \.jsonl or \.parquet"):
        suffix_of("s3://bucket/rows.csv")
