"""Chat rows: `{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}`.

In Parquet the column `messages` is a list of structs with the same two fields.
"""

from functools import partial
from typing import Any

import msgspec

from pipeline.data.reading import BrokenRow, Form, Row, explain_messages, kind_of, names_of


def explain(value: Any) -> BrokenRow | None:
    """What is wrong with the shape of a decoded row; None if nothing is."""
    if not isinstance(value, dict):
        return BrokenRow(f"the row is {kind_of(value)}, expected an object with `messages`")
    if "messages" not in value:
        return BrokenRow(f"the row has no `messages`; it has {names_of(value)}")
    return explain_messages("messages", value["messages"])


CHAT = Form(
    columns=("messages",),
    needed=("messages",),
    decode=msgspec.json.Decoder(Row).decode,
    convert=partial(msgspec.convert, type=Row),
    explain=explain,
)
