"""Turns a file of validated rows into a data set in tokens, by several processes.

The file is cut into chunks in the same way whatever the number of processes, and what they make of them is written in
order: the result has the same bytes with one process and with many.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts.specs import TokensResult
from pipeline.errors import DataError, SpecError, TransientError
from pipeline.imports import hide
from pipeline.processes import end_with_parent
from pipeline.settings import set_for_libraries
from pipeline.training.base_model import load_tokenizer
from pipeline.training.rendering import Encoded, encode, render, render_pair
from pipeline.training.tokens import SHARD_TOKENS, Flags, Ids, TokenWriter

CHUNK_ROWS = 1000
CHUNK_BYTES = 4 << 20
"""A chunk ends after so many rows or bytes, whichever comes first."""
BYTES_A_PROCESS = 8 << 20
"""A further process takes two seconds to start; it is worth that for so much text, some tens of thousands of rows."""

OnProgress = Callable[[int, int], None]
"""Told how many bytes of the file are done, of how many."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive lines of the file."""

    lines: list[bytes]
    first_line: int
    """Counted from 1."""
    end: int
    """How many bytes of the file lie behind its last line."""


@dataclass(frozen=True)
class Encoding:
    """What is made of a chunk: its rows end to end."""

    ids: Ids
    answer: Flags
    lengths: NDArray[np.int32]
    shortened_prompts: int
    shortened_answers: int


@dataclass(frozen=True)
class Encoder:
    """Makes tokens of chunks. Processes get one each."""

    tokenizer: Any
    file_name: str
    """For messages."""
    max_seq_len: int
    pairs: bool

    def __call__(self, chunk: Chunk) -> Encoding:
        rendered = [self._render(line, chunk.first_line + offset) for offset, line in enumerate(chunk.lines)]
        rows: list[Encoded] = list(encode(self.tokenizer, rendered, self.max_seq_len))
        lines = [line for row in rows for line in row.lines]
        return Encoding(
            ids=np.concatenate([ids for ids, _ in lines]),
            answer=np.concatenate([answer for _, answer in lines]),
            lengths=np.array([len(ids) for ids, _ in lines], dtype=np.int32),
            shortened_prompts=sum(row.cut == "prompt" for row in rows),
            shortened_answers=sum(row.cut == "answer" for row in rows),
        )

    def _render(self, line: bytes, number: int) -> Any:
        where, row = f"{self.file_name} line {number}", json.loads(line)
        if not self.pairs:
            return render(self.tokenizer, row["messages"], where=where)
        if "rejected" not in row:
            raise DataError(
                f"{where} has no rejected answer: method dpo learns from validated preference rows;"
                " validate the data with dataset.format preference"
            )
        return render_pair(self.tokenizer, row["messages"], row["rejected"], where=where)


def write_tokens(
    rows_path: Path,
    model_path: Path,
    folder: Path,
    *,
    max_seq_len: int,
    pairs: bool = False,
    processes: int = 1,
    on_progress: OnProgress = lambda done, total: None,
    chunk_rows: int = CHUNK_ROWS,
    shard_tokens: int = SHARD_TOKENS,
) -> TokensResult:
    """Tokenizes every row of `rows_path` into `folder`; see `pipeline.training.tokens`.

    Args:
        model_path: a folder with a tokenizer.
        pairs: the rows are preference rows; each becomes two.

    Raises:
        SpecError: the tokenizer has no chat template, or one that does not extend its own prompt.
        DataError: there is no row, a row without an answer at its end, or nothing that could be learnt.
        TransientError: a process was killed.
    """
    arguments = (model_path, rows_path.name, max_seq_len, pairs)
    encoder = make_encoder(*arguments)
    writer = TokenWriter(folder, pairs=pairs, shard_tokens=shard_tokens)
    prompts_cut = answers_cut = 0
    total = rows_path.stat().st_size
    chunks = read_chunks(rows_path, chunk_rows)
    made = (
        map(lambda chunk: (chunk, encoder(chunk)), chunks) if processes == 1 else _spread(chunks, processes, arguments)
    )
    for chunk, encoding in made:
        writer.add(encoding.ids, encoding.answer, encoding.lengths)
        prompts_cut += encoding.shortened_prompts
        answers_cut += encoding.shortened_answers
        on_progress(chunk.end, total)
    rows, tokens, learnt = writer.close()
    if not rows:
        raise DataError(f"{rows_path} has no rows: there is nothing to train on")
    if not learnt:
        raise DataError(
            f"no token of the {rows} rows of {rows_path.name} counts in the loss: the base model's chat template"
            " renders the assistant's messages as nothing; give the model another chat_template.jinja"
        )
    return TokensResult(rows=rows, tokens=tokens, shortened_prompts=prompts_cut, shortened_answers=answers_cut)


def worthwhile_processes(size_bytes: int, cpus: int) -> int:
    """How many processes to tokenize so much text with."""
    return max(1, min(cpus, size_bytes // BYTES_A_PROCESS))


def make_encoder(model_path: Path, file_name: str, max_seq_len: int, pairs: bool) -> Encoder:
    tokenizer = load_tokenizer(model_path)
    if not tokenizer.chat_template:
        raise SpecError(f"the base model's tokenizer has no chat template: add chat_template.jinja to {model_path}")
    return Encoder(tokenizer, file_name, max_seq_len, pairs)


def read_chunks(path: Path, chunk_rows: int) -> Iterator[Chunk]:
    lines: list[bytes] = []
    first, size, end = 1, 0, 0
    with path.open("rb") as file:
        for line in file:
            lines.append(line)
            size, end = size + len(line), end + len(line)
            if len(lines) >= chunk_rows or size >= CHUNK_BYTES:
                yield Chunk(lines, first, end)
                first, lines, size = first + len(lines), [], 0
    if lines:
        yield Chunk(lines, first, end)


def _spread(chunks: Iterator[Chunk], processes: int, arguments: tuple[Any, ...]) -> Iterator[tuple[Chunk, Encoding]]:
    """What processes of their own make of the chunks, in order. Few chunks are in memory at a time."""
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin, arguments)
    waiting: deque[tuple[Chunk, Future[Encoding]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_encode, chunk)))
            if len(waiting) > 2 * processes:
                chunk, future = waiting.popleft()
                yield chunk, future.result()
        for chunk, future in waiting:
            yield chunk, future.result()
    except BrokenProcessPool as error:
        raise TransientError(
            f"one of {processes} processes that tokenize was killed, perhaps for want of memory; run the step again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_encoder: Encoder | None = None
"""Of a process that `_begin` began."""


def _begin(*arguments: Any) -> None:
    global _encoder
    end_with_parent()
    hide("torch")
    set_for_libraries({"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"})
    _encoder = make_encoder(*arguments)


def _encode(chunk: Chunk) -> Encoding:
    assert _encoder is not None
    return _encoder(chunk)
