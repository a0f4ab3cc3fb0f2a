"""The columns that rules look at."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.columns import (
    COLUMNS,
    batch_table,
    check_roles,
    compared,
    count_bytes,
    first_lines,
    token_counter,
    with_overlap,
)
from pipeline.data.reading import Batch, BrokenRow, Message, Row
from pipeline.data.text import comparable, comparable_column


def table_of(*rows: Row | BrokenRow) -> pl.DataFrame:
    return batch_table(Batch(rows=list(rows), lines=list(range(1, len(rows) + 1))), count_bytes)


def row(*messages: tuple[str, str]) -> Row:
    return Row([Message(role, content) for role, content in messages])


def pair(prompt: str, answer: str) -> Row:
    return row(("user", prompt), ("assistant", answer))


ROLES = {
    "": "`messages` is empty, expected at least a user's and an assistant's",
    "ua": None,
    "sua": None,
    "uaua": None,
    "a": "message 1 has the role 'assistant', expected 'user'",
    "uu": "message 2 has the role 'user', expected 'assistant'",
    "usa": "message 2 has the role 'system', expected 'assistant'",
    "u": "the last message has the role 'user', expected 'assistant'",
    "s": "the last message has the role 'system', expected 'assistant'",
    "ut": "message 2 has the role 'tool', expected 'assistant'",
}


@pytest.mark.parametrize("order", ROLES)
def test_roles_are_an_optional_system_then_user_and_assistant_in_turn(order: str) -> None:
    """The assistant has the last word, since that is what is trained."""
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    assert check_roles([Message(names[letter], "x") for letter in order]) == ROLES[order]


def test_every_documented_column_is_there() -> None:
    """The user's suite may name any of them."""
    table = with_overlap(compared(table_of(pair("a", "b"))), None)
    assert set(COLUMNS) <= set(table.columns)


def test_the_prompt_is_all_but_the_last_message() -> None:
    """With a system message and earlier turns."""
    table = table_of(
        row(("system", "be kind"), ("user", "hi"), ("assistant", "hello"), ("user", "why"), ("assistant", "so"))
    )
    assert table["prompt"].to_list() == ["be kind\nhi\nhello\nwhy"]
    assert table.select("answer", "messages", "chars_min", "chars_max").row(0) == ("so", 5, 2, 7)


def test_an_empty_message_is_named() -> None:
    """White space is nothing to learn from."""
    assert table_of(pair("a", " \n"))["content_problem"].to_list() == ["message 2 (assistant) is empty"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("caf\ufffd", "U+FFFD in the prompt: the text was once decoded with the wrong encoding"),
        ("a\x00b", "the control character U+0000 in the prompt"),
        ("a\x9bb", "the control character U+009B in the prompt"),
        ("tab\tand\r\nline é 😀 \u200d", None),
    ],
)
def test_characters_that_are_no_text_are_encoding_problems(text: str, expected: str | None) -> None:
    """Tabs and line breaks are text."""
    assert table_of(pair(text, "b"))["encoding_problem"].to_list() == [expected]


def test_duplicates_and_conflicts_name_the_first_line() -> None:
    """The same prompt in another case with the same answer repeats it; with another answer it contradicts it."""
    table = compared(
        table_of(pair("Where is it", "x"), pair("where  IS it", "x"), pair("where is it", "y"), pair("z", "x"))
    )
    assert table["duplicate_of"].to_list() == [None, 1, None, None]
    assert table["conflicts_with"].to_list() == [None, None, 1, None]


def test_broken_rows_repeat_nothing() -> None:
    """Two rows without a prompt are not each other's duplicates."""
    broken = BrokenRow("no"), BrokenRow("no"), row(("user", "a")), row(("user", "a"))
    table = compared(table_of(*broken))
    assert table["duplicate_of"].null_count() == table["conflicts_with"].null_count() == 4
    assert with_overlap(table, first_lines(table))["in_train"].null_count() == 4


def test_overlap_names_the_training_line_and_keeps_the_order() -> None:
    """Whatever the answers are."""
    train = compared(table_of(pair("a", "x"), pair("b", "x")))
    held_out = with_overlap(compared(table_of(pair("c", "x"), pair(" B ", "y"))), first_lines(train))
    assert held_out.select("line", "in_train").rows() == [(1, None), (2, 2)]


def test_tokens_are_bytes_or_what_the_tokenizer_counts() -> None:
    """And null for a row without a prompt, in its place."""
    rows = [BrokenRow("no"), pair("héllo", "ab"), pair("x y z", "w")]
    batch = Batch(rows=list(rows), lines=[1, 2, 3])
    assert batch_table(batch, count_bytes)["tokens"].to_list() == [None, 8, 6]
    by_words = token_counter(lambda texts: [len(text.split()) for text in texts])
    assert batch_table(batch, by_words)["tokens"].to_list() == [None, 2, 4]


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_prompts_compare_alike_one_by_one_and_by_column(texts: list[str]) -> None:
    """The generator compares one by one, the rules by column."""
    column = pl.DataFrame({"prompt": texts}, schema={"prompt": pl.String})
    assert column.select(comparable_column(pl.col("prompt")))["prompt"].to_list() == [
        comparable(text) for text in texts
    ]
