"""Preference rows: a prompt, an answer that was chosen, and one that was rejected.

Three layouts are read, the usual ones of the Hugging Face hub and our own; a list is one of chat messages:

| fields                       | what they hold                                                                        |
|------------------------------|---------------------------------------------------------------------------------------|
| `prompt` `chosen` `rejected` | text or a list each; a list of one message is the answer, a longer one the whole chat |
| `chosen` `rejected`          | two whole chats that differ in their last message alone                               |
| `messages` `rejected`        | the chat with the chosen answer, and the rejected answer as text: the normal form     |

All become the last one, so whoever reads chats reads these rows as chats that end with the chosen answer.
"""

from typing import Any

import msgspec

from pipeline.data.reading import BrokenRow, Form, Message, Row, explain_messages, kind_of, names_of

Side = str | list[Message]


class PreferenceRow(Row, gc=False):
    """A chat that ends with the chosen answer."""

    rejected: str


class Raw(msgspec.Struct, gc=False):
    """A row in any of the layouts."""

    rejected: Side
    chosen: Side | None = None
    prompt: Side | None = None
    messages: list[Message] | None = None


class Unclear(Exception):
    """A row of the right types that is no pair of answers to one prompt."""


def normalise(raw: Raw) -> PreferenceRow | BrokenRow:
    """`raw` in normal form."""
    chosen = raw.messages if raw.chosen is None else raw.chosen
    if chosen is None:
        return BrokenRow("the row has no `chosen`; expected `prompt`, `chosen` and `rejected`")
    try:
        prompt = _prompt_of(raw.prompt, chosen, raw.rejected)
        answer, rejected = _answer_of("chosen", chosen), _answer_of("rejected", raw.rejected)
    except Unclear as error:
        return BrokenRow(str(error))
    return PreferenceRow([*prompt, Message("assistant", answer)], rejected)


def _prompt_of(prompt: Side | None, chosen: Side, rejected: Side) -> list[Message]:
    """The messages before both answers."""
    chats = [side[:-1] for side in (chosen, rejected) if isinstance(side, list) and len(side) > 1]
    if not chats:
        if prompt is None:
            raise Unclear("the row has no `prompt`, and `chosen` and `rejected` are answers alone")
        return [Message("user", prompt)] if isinstance(prompt, str) else prompt
    if len(chats) == 2 and chats[0] != chats[1]:
        raise Unclear(f"`chosen` and `rejected` answer different prompts: {_first_difference(*chats)}")
    asked = [message.content for message in chats[0] if message.role == "user"]
    if (isinstance(prompt, str) and prompt not in asked) or (isinstance(prompt, list) and prompt != chats[0]):
        raise Unclear("`prompt` is not what `chosen` and `rejected` answer")
    return chats[0]


def _first_difference(one: list[Message], other: list[Message]) -> str:
    for number, (mine, theirs) in enumerate(zip(one, other, strict=False), start=1):
        if mine != theirs:
            return f"their messages {number} differ; expected all but the last to be the same"
    return f"{len(one)} and {len(other)} messages stand before their last"


def _answer_of(name: str, side: Side) -> str:
    if isinstance(side, str):
        return side
    if not side:
        raise Unclear(f"`{name}` is an empty list, expected an answer")
    if side[-1].role != "assistant":
        raise Unclear(f"the last message of `{name}` has the role {side[-1].role[:40]!r}, expected 'assistant'")
    return side[-1].content


def explain(value: Any) -> BrokenRow | None:
    """What is wrong with the shape of a decoded row; None if nothing is."""
    if not isinstance(value, dict):
        return BrokenRow(f"the row is {kind_of(value)}, expected an object with `prompt`, `chosen` and `rejected`")
    if value.get("rejected") is None:
        return BrokenRow(f"the row has no `rejected`; it has {names_of(value)}")
    for name in ("prompt", "chosen", "rejected", "messages"):
        side = value.get(name)
        if side is None or (isinstance(side, str) and name != "messages"):
            continue
        if not isinstance(side, list) and name != "messages":
            return BrokenRow(f"`{name}` is {kind_of(side)}, expected a string or a list of messages")
        if problem := explain_messages(name, side):
            return problem
    return None


_decode = msgspec.json.Decoder(Raw).decode

PREFERENCE = Form(
    columns=("prompt", "chosen", "rejected", "messages"),
    needed=("rejected",),
    decode=lambda line: normalise(_decode(line)),
    convert=lambda record: normalise(msgspec.convert(record, Raw)),
    explain=explain,
)
