"""Chat rows as token ids, with each token's share in the loss; kept in one file that every rank maps into memory.

Reads train.jsonl, writes tokens.npz-like arrays: `ids` (int32, all rows end to end), `answer` (bool, the token is the
assistant's) and `starts` (int64, row i is ids[starts[i]:starts[i + 1]]).

The prompt of a row's last answer is tokenized by itself, as it is when the model is served, and so is the answer: the
two tokenize alike in training and in use whatever the tokenizer would merge at the seam. What the assistant says is
found by rendering the chat up to an answer and after it, so any chat template will do.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, SpecError

ROWS_AT_ONCE = 2000


@dataclass(frozen=True)
class Rendered:
    """A chat row as text: the prompt of its last answer, the spans of earlier answers in it, the last answer."""

    prompt: str
    answer: str
    earlier: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Report:
    """What happened to the rows on the way."""

    rows: int
    tokens: int
    shortened_prompts: int
    """Rows whose prompt lost its beginning to fit max_seq_len."""
    shortened_answers: int
    """Rows whose answer alone is longer than max_seq_len, and lost its end."""


class TokenFile:
    """The rows' tokens, mapped from the file."""

    def __init__(self, folder: Path) -> None:
        self.ids: NDArray[np.int32] = np.load(folder / "ids.npy", mmap_mode="r")
        self.answer: NDArray[np.bool_] = np.load(folder / "answer.npy", mmap_mode="r")
        self.starts: NDArray[np.int64] = np.load(folder / "starts.npy")
        self.lengths: NDArray[np.int64] = np.diff(self.starts)
        """Tokens of each row."""

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        span = slice(self.starts[index], self.starts[index + 1])
        return self.ids[span], self.answer[span]


def write_tokens(rows_path: Path, tokenizer: Any, folder: Path, *, max_seq_len: int) -> Report:
    """Tokenizes every row of `rows_path` into `folder`.

    Raises:
        SpecError: the tokenizer has no chat template, or one that does not extend its own prompt.
        DataError: there is no row, or a row without an assistant's answer at its end.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise SpecError("the base model's tokenizer has no chat template: add chat_template.jinja to its folder")
    folder.mkdir(parents=True, exist_ok=True)
    ids: list[NDArray[np.int32]] = []
    answers: list[NDArray[np.bool_]] = []
    prompts_cut = answers_cut = 0
    rows = enumerate(read_rows(rows_path), start=1)
    while chunk := list(islice(rows, ROWS_AT_ONCE)):
        rendered = [render(tokenizer, messages, where=f"{rows_path.name} line {line}") for line, messages in chunk]
        for row_ids, is_answer in encode(tokenizer, rendered):
            fitted, cut = fit(row_ids, is_answer, max_seq_len)
            prompts_cut, answers_cut = prompts_cut + (cut == "prompt"), answers_cut + (cut == "answer")
            ids.append(fitted[0])
            answers.append(fitted[1])
    if not ids:
        raise DataError(f"{rows_path} has no rows: there is nothing to train on")
    if not any(row.any() for row in answers):
        raise SpecError(
            "no token of any row counts in the loss: the chat template renders the assistant's messages as nothing"
        )
    starts = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    np.save(folder / "ids.npy", np.concatenate(ids))
    np.save(folder / "answer.npy", np.concatenate(answers))
    np.save(folder / "starts.npy", starts)
    return Report(len(ids), int(starts[-1]), prompts_cut, answers_cut)


def read_rows(path: Path) -> Iterator[list[dict[str, Any]]]:
    """The messages of each row of a chat file."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["messages"]


def render(tokenizer: Any, messages: list[dict[str, Any]], *, where: str) -> Rendered:
    """`messages` through the chat template."""
    if not messages or messages[-1]["role"] != "assistant":
        raise DataError(f"{where}: the last message is not the assistant's, so there is nothing to learn from")
    prompt = _template(tokenizer, messages[:-1], where, prompt=True)
    full = _template(tokenizer, messages, where)
    if not full.startswith(prompt):
        raise SpecError(
            f"{where}: the chat template renders the chat as {full[:200]!r}, which does not begin with the prompt"
            f" {prompt[:200]!r} that it renders when served: the model would learn something else than it is asked"
        )
    earlier = []
    for index, message in enumerate(messages[:-1]):
        if message["role"] == "assistant":
            before = _template(tokenizer, messages[:index], where, prompt=True)
            after = _template(tokenizer, messages[: index + 1], where)
            # A template may rewrite earlier answers (dropping their reasoning, say): those are prompt, not answer.
            if prompt.startswith(after) and after.startswith(before):
                earlier.append((len(before), len(after)))
    return Rendered(prompt, full[len(prompt) :], tuple(earlier))


def _template(tokenizer: Any, messages: list[dict[str, Any]], where: str, *, prompt: bool = False) -> str:
    from jinja2.exceptions import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except TemplateError as error:
        raise SpecError(f"{where}: the base model's chat template refuses the row: {error}") from error
    return text


def encode(tokenizer: Any, rows: list[Rendered]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
    """Ids and "is the assistant's" of each row."""
    with_offsets = any(row.earlier for row in rows)
    prompts = tokenizer([row.prompt for row in rows], add_special_tokens=False, return_offsets_mapping=with_offsets)
    answers = tokenizer([row.answer for row in rows], add_special_tokens=False)
    for index, row in enumerate(rows):
        prompt_ids, answer_ids = prompts["input_ids"][index], answers["input_ids"][index]
        is_answer = np.zeros(len(prompt_ids) + len(answer_ids), dtype=np.bool_)
        is_answer[len(prompt_ids) :] = True
        if row.earlier:
            offsets = prompts["offset_mapping"][index]
            is_answer[: len(prompt_ids)] = [_within(offset, row.earlier) for offset in offsets]
        yield np.asarray([*prompt_ids, *answer_ids], dtype=np.int32), is_answer


def _within(offset: tuple[int, int], spans: Iterable[tuple[int, int]]) -> bool:
    return any(start <= offset[0] and offset[1] <= end and offset[1] > offset[0] for start, end in spans)


def fit(
    ids: NDArray[np.int32], is_answer: NDArray[np.bool_], max_seq_len: int
) -> tuple[tuple[NDArray[np.int32], NDArray[np.bool_]], str]:
    """The row in at most `max_seq_len` tokens, and what was cut: "", "prompt" or "answer".

    The prompt loses its beginning, so that the answer stays whole; only an answer that fills the whole length by
    itself loses its end.
    """
    if len(ids) <= max_seq_len:
        return (ids, is_answer), ""
    others = np.flatnonzero(~is_answer)
    last_answer = int(others[-1]) + 1 if len(others) else 0
    if len(ids) - last_answer >= max_seq_len:
        span = slice(max(0, last_answer - 1), max(0, last_answer - 1) + max_seq_len)
        return (ids[span], is_answer[span]), "answer"
    return (ids[-max_seq_len:], is_answer[-max_seq_len:]), "prompt"
