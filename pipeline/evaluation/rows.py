"""The held-out rows, rendered through the model's chat template as the gateway's clients have it rendered."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.contracts.base import canonical_json
from pipeline.errors import SpecError

Message = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One held-out row as the engine gets it."""

    number: int
    """Line of eval.jsonl, from 0."""
    prompt: str
    """What identifies the row whatever the template; see `predictions.Prediction`."""
    reference: str
    prompt_ids: list[int]
    """Tokens up to where the assistant's last message begins."""
    answer_ids: list[int]
    """Tokens of that message, with the end of turn."""

    def fits(self, max_model_len: int) -> bool:
        """Whether the engine can score it: it wants room for one token behind the answer."""
        return len(self.prompt_ids) + len(self.answer_ids) < max_model_len


def read_rows(path: Path, max_rows: int | None) -> list[list[Message]]:
    """The messages of the first `max_rows` rows of a validated file (all of them if None)."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["messages"] for line in itertools.islice(lines, max_rows)]


def render_rows(conversations: list[list[Message]], tokenizer: Any, end_ids: set[int]) -> list[Row]:
    """
    Args:
        tokenizer: a transformers tokenizer with a chat template.
        end_ids: tokens that end a turn.

    Raises:
        SpecError: the template does not render a conversation as its prompt and then the answer.
    """
    return [_render(number, messages, tokenizer, end_ids) for number, messages in enumerate(conversations)]


def _render(number: int, messages: list[Message], tokenizer: Any, end_ids: set[int]) -> Row:
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    if not whole.startswith(prompt):
        raise SpecError(
            f"held-out row {number}: the model's chat template renders the conversation as {whole[:200]!r}…, which does"
            f" not begin with its prompt {prompt[:200]!r}…; use a template that adds the answer after the prompt"
        )
    return Row(
        number=number,
        prompt=row_name(messages[:-1]),
        reference=messages[-1]["content"],
        prompt_ids=_tokens(tokenizer, prompt),
        answer_ids=up_to_end(_tokens(tokenizer, whole[len(prompt) :]), end_ids),
    )


def row_name(messages: list[Message]) -> str:
    """The user's message if it is the only one, else all messages as canonical JSON."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return canonical_json(messages).decode()


def up_to_end(answer_ids: list[int], end_ids: set[int]) -> list[int]:
    """Leaves out what a template puts behind the end of turn, since a model never generates it."""
    for position, token in enumerate(answer_ids):
        if token in end_ids:
            return answer_ids[: position + 1]
    return answer_ids


def _tokens(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
