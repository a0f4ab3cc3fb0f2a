"""Rows as token ids, with each token's share in the loss, through the base model's chat template.

The prompt of a row's last answer is tokenized by itself, as it is when the model is served, and so is the answer: the
two tokenize alike in training and in use whatever the tokenizer would merge at the seam. What the assistant says is
found by rendering the chat up to an answer and after it, so any chat template will do.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.errors import DataError, SpecError
from pipeline.training.tokens import Flags, Ids

Message = dict[str, Any]
Cut = Literal["", "prompt", "answer"]


@dataclass(frozen=True)
class Rendered:
    """A row as text: the prompt, the spans of the answers in it that are learnt too, and what may follow it."""

    prompt: str
    answers: tuple[str, ...]
    """One, or the chosen and the rejected."""
    earlier: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Encoded:
    """A row as tokens: one line for each of its answers."""

    lines: tuple[tuple[Ids, Flags], ...]
    """Ids and "is the assistant's"."""
    cut: Cut
    """What was cut to fit the length."""


def render(tokenizer: Any, messages: list[Message], *, where: str) -> Rendered:
    """A chat through the chat template: its last answer and the earlier ones are learnt.

    Raises:
        DataError: the last message is not the assistant's.
        SpecError: a template that does not extend its own prompt, or refuses the row.
    """
    prompt, answer = _seam(tokenizer, messages, where)
    earlier = []
    for index, message in enumerate(messages[:-1]):
        if message["role"] == "assistant":
            before = _template(tokenizer, messages[:index], where, prompt=True)
            after = _template(tokenizer, messages[: index + 1], where)
            # A template may rewrite earlier answers (dropping their reasoning, say): those are prompt, not answer.
            if prompt.startswith(after) and after.startswith(before):
                earlier.append((len(before), len(after)))
    return Rendered(prompt, (answer,), tuple(earlier))


def render_pair(tokenizer: Any, messages: list[Message], rejected: str, *, where: str) -> Rendered:
    """A chat that ends with the chosen answer, and the rejected one: what precedes both tells neither from the other.

    Raises:
        DataError: the last message is not the assistant's, or the template leaves nothing of an answer.
        SpecError: as `render`.
    """
    prompt, chosen = _seam(tokenizer, messages, where)
    _, other = _seam(tokenizer, [*messages[:-1], {"role": "assistant", "content": rejected}], where)
    if not chosen or not other:
        raise DataError(f"{where}: the chat template renders an answer as nothing, so there is no choice to learn")
    return Rendered(prompt, (chosen, other))


def _seam(tokenizer: Any, messages: list[Message], where: str) -> tuple[str, str]:
    """The prompt as it is when the model is served, and the last answer."""
    if not messages or messages[-1]["role"] != "assistant":
        raise DataError(f"{where}: the last message is not the assistant's, so there is nothing to learn from")
    prompt = _template(tokenizer, messages[:-1], where, prompt=True)
    full = _template(tokenizer, messages, where)
    if not full.startswith(prompt):
        raise SpecError(
            f"{where}: the chat template renders the chat as {full[:200]!r}, which does not begin with the prompt"
            f" {prompt[:200]!r} that it renders when served: the model would learn something else than it is asked"
        )
    return prompt, full[len(prompt) :]


def _template(tokenizer: Any, messages: list[Message], where: str, *, prompt: bool = False) -> str:
    from jinja2.exceptions import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except TemplateError as error:
        raise SpecError(f"{where}: the base model's chat template refuses the row: {error}") from error
    return text


def encode(tokenizer: Any, rows: list[Rendered], max_seq_len: int) -> Iterator[Encoded]:
    """Each row as tokens, at most `max_seq_len` a line."""
    with_offsets = any(row.earlier for row in rows)
    prompts = tokenizer([row.prompt for row in rows], add_special_tokens=False, return_offsets_mapping=with_offsets)
    texts = [answer for row in rows for answer in row.answers]
    answers = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    for index, row in enumerate(rows):
        prompt = np.asarray(prompts["input_ids"][index], dtype=np.int32)
        learnt = np.zeros(len(prompt), dtype=np.bool_)
        if row.earlier:
            learnt[:] = [_within(offset, row.earlier) for offset in prompts["offset_mapping"][index]]
        yield fit(prompt, learnt, [np.asarray(next(answers), dtype=np.int32) for _ in row.answers], max_seq_len)


def _within(offset: tuple[int, int], spans: Iterable[tuple[int, int]]) -> bool:
    return any(start <= offset[0] and offset[1] <= end and offset[1] > offset[0] for start, end in spans)


def fit(prompt: Ids, learnt: Flags, answers: list[Ids], max_seq_len: int) -> Encoded:
    """A line for each of `answers` behind the prompt, in at most `max_seq_len` tokens.

    The prompt loses its beginning, so that the answers stay whole; all answers of a row follow the same prompt. Only
    an answer that fills the whole length by itself loses its end: one token of the prompt stays to predict it from.

    Args:
        learnt: which tokens of the prompt are an earlier answer's.
    """
    longest = max(len(answer) for answer in answers)
    kept = min(len(prompt), max(1, max_seq_len - longest))
    lines = []
    for answer in answers:
        ids = np.concatenate([prompt[len(prompt) - kept :], answer])[:max_seq_len]
        flags = np.concatenate([learnt[len(prompt) - kept :], np.ones(len(answer), dtype=np.bool_)])[:max_seq_len]
        lines.append((ids, flags))
    cut: Cut = "answer" if kept + longest > max_seq_len else "prompt" if kept < len(prompt) else ""
    return Encoded(tuple(lines), cut)
