"""Preference rows: the layouts that are read, their normal form, and what is no pair of answers."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.columns import batch_table, compared, count_bytes, token_counter
from pipeline.data.generate import support_intents
from pipeline.data.preferences import PREFERENCE, PreferenceRow
from pipeline.data.reading import Batch, BrokenRow, Row, encoder, read_batches
from tests.chat_files import preference, write_jsonl


def says(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


SYSTEM, ASKED = says("system", "Be brief."), says("user", "Where is it?")
GOOD, BAD = says("assistant", "On its way."), says("assistant", "No idea.")
TALK = [says("user", "Hello"), says("assistant", "Good day"), ASKED]

LAYOUTS: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "text": (preference("Where is it?", "On its way.", "No idea."), [ASKED]),
    "a prompt of messages": (
        {"prompt": [SYSTEM, ASKED], "chosen": "On its way.", "rejected": "No idea."},
        [SYSTEM, ASKED],
    ),
    "answers of messages": ({"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]}, [ASKED]),
    "whole chats": ({"chosen": [*TALK, GOOD], "rejected": [*TALK, BAD]}, TALK),
    "whole chats and their prompt as text": (
        {"prompt": "Where is it?", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD], "messages": [ASKED, GOOD]},
        [ASKED],
    ),
    "whole chats and their prompt": ({"prompt": TALK, "chosen": [*TALK, GOOD], "rejected": [*TALK, BAD]}, TALK),
    "one whole chat": ({"chosen": [SYSTEM, ASKED, GOOD], "rejected": "No idea."}, [SYSTEM, ASKED]),
    "the normal form": ({"messages": [ASKED, GOOD], "rejected": "No idea."}, [ASKED]),
    "other fields": ({"id": 7, "score": None, **preference("Where is it?", "On its way.", "No idea.")}, [ASKED]),
}


def rows_of(path: Path) -> list[Row | BrokenRow]:
    return [row for batch in read_batches(path, path.suffix, PREFERENCE) for row in batch.rows]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_every_layout_becomes_one_chat_with_a_rejected_answer(tmp_path: Path, layout: str, suffix: str) -> None:
    """From JSONL and from Parquet alike."""
    given, prompt = LAYOUTS[layout]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([given]), path)
    else:
        write_jsonl(path, [given])
    (row,) = rows_of(path)
    assert isinstance(row, PreferenceRow), row
    assert json.loads(encoder().encode(row)) == {"messages": [*prompt, GOOD], "rejected": "No idea."}


BROKEN: dict[str, tuple[Any, str]] = {
    "no object": ([1], "the row is a list, expected an object with `prompt`, `chosen` and `rejected`"),
    "no rejected": ({"prompt": "a", "chosen": "b"}, "the row has no `rejected`; it has 'prompt', 'chosen'"),
    "a null for rejected": (preference("a", "b", None), "the row has no `rejected`"),  # type: ignore[arg-type]
    "no chosen": ({"prompt": "a", "rejected": "b"}, "the row has no `chosen`"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "the row has no `prompt`, and `chosen` and `rejected` are answers"),
    "a number": ({"prompt": 7, "chosen": "a", "rejected": "b"}, "`prompt` is a number, expected a string or a list"),
    "a message without a role": (
        {"prompt": "a", "chosen": [{"content": "b"}], "rejected": "c"},
        "`chosen` message 1 has no `role`; it has 'content'",
    ),
    "no answer": ({"prompt": "a", "chosen": [], "rejected": [BAD]}, "`chosen` is an empty list"),
    "a question for an answer": (
        {"prompt": "a", "chosen": [GOOD], "rejected": [ASKED]},
        "the last message of `rejected` has the role 'user', expected 'assistant'",
    ),
    "two prompts": (
        {"chosen": [ASKED, GOOD], "rejected": [says("user", "What?"), BAD]},
        "`chosen` and `rejected` answer different prompts: their messages 1 differ",
    ),
    "prompts of two lengths": (
        {"chosen": [ASKED, GOOD], "rejected": [SYSTEM, ASKED, BAD]},
        "answer different prompts: their messages 1 differ",
    ),
    "chats that part early": (
        {"chosen": [ASKED, GOOD], "rejected": [ASKED, GOOD, ASKED, BAD]},
        "answer different prompts: 1 and 3 messages stand before their last",
    ),
    "another prompt than the chats'": (
        {"prompt": "What?", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        "`prompt` is not what `chosen` and `rejected` answer",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_pair_of_answers_is_a_structure_problem(tmp_path: Path, case: str) -> None:
    """In words that say which field to look at."""
    given, said = BROKEN[case]
    (row,) = rows_of(write_jsonl(tmp_path / "rows.jsonl", [given]))
    assert isinstance(row, BrokenRow)
    assert said in str(row.structure_problem)


def test_parquet_without_rejected_answers_says_which_columns_it_has(tmp_path: Path) -> None:
    """One finding for the file."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "chosen": ["b"]}), path)
    (row,) = rows_of(path)
    assert isinstance(row, BrokenRow)
    assert row.structure_problem == "the file has the columns 'prompt', 'chosen'; expected `rejected`"


def table(*rows: dict[str, Any], tmp_path: Path) -> Any:
    batch = Batch(rows=rows_of(write_jsonl(tmp_path / "rows.jsonl", rows)), lines=list(range(1, len(rows) + 1)))
    return compared(batch_table(batch, count_bytes))


def test_a_choice_that_is_none_is_a_problem(tmp_path: Path) -> None:
    """The same answer on both sides, but for blanks around it; an empty one is a problem of content."""
    found = table(
        preference("a", "yes", " yes\n"), preference("b", "yes", "no"), preference("c", "yes", " "), tmp_path=tmp_path
    )
    assert found["pair_problem"].to_list() == ["the rejected answer is the chosen one", None, None]
    assert found["content_problem"].to_list() == [None, None, "the rejected answer is empty"]


def test_the_opposite_choice_contradicts_the_earlier_one(tmp_path: Path) -> None:
    """For the same prompt only; another pair of answers to it is no contradiction, and the same one a duplicate."""
    found = table(
        preference("a", "yes", "no"),
        preference("a", "perhaps", "no"),
        preference("b", "no", "yes"),
        preference("A ", "no", "yes"),
        preference("a", "yes", "no"),
        tmp_path=tmp_path,
    )
    assert found["contradicts"].to_list() == [None, None, None, 1, 4]
    assert found["duplicate_of"].to_list() == [None, None, None, None, 1]


def test_tokens_and_lengths_are_those_of_the_longer_answer(tmp_path: Path) -> None:
    """Both must fit the model."""
    rows = (preference("ab", "c", "defg"), preference("ab", "cdefgh", "i"))
    found = table(*rows, tmp_path=tmp_path)
    assert found["tokens"].to_list() == [6, 8]
    assert found["chars_max"].to_list() == [4, 6]
    assert found["chars_min"].to_list() == [1, 1]
    words = token_counter(lambda texts: [len(text.split()) for text in texts])
    batch = Batch(rows=rows_of(write_jsonl(tmp_path / "rows.jsonl", [[], preference("a b", "c", "d e")])), lines=[1, 2])
    assert batch_table(batch, words)["tokens"].to_list() == [None, 4]


def test_text_that_was_decoded_wrongly_is_found_in_the_rejected_answer_too(tmp_path: Path) -> None:
    """It would be learnt from, if only as what not to say."""
    found = table(preference("a", "b", "caf\N{REPLACEMENT CHARACTER}"), tmp_path=tmp_path)
    assert "U+FFFD in the rejected answer" in found["encoding_problem"][0]


def test_the_demonstration_rejects_another_intent_of_the_same_messages(tmp_path: Path) -> None:
    """Prompts and chosen answers are those of the chat rows of the same seed, and every row is a choice."""
    chat_path, pair_path = tmp_path / "chat.jsonl", tmp_path / "pairs.jsonl"
    for path, preferences in ((chat_path, False), (pair_path, True)):
        support_intents(
            train_rows=100, eval_rows=50, seed=7, train_path=path, eval_path=tmp_path / "eval", preferences=preferences
        )
    pairs = [json.loads(line) for line in pair_path.read_text().splitlines()]
    chats = [json.loads(line)["messages"] for line in chat_path.read_text().splitlines()]
    assert [(pair["prompt"], pair["chosen"]) for pair in pairs] == [(m[0]["content"], m[1]["content"]) for m in chats]
    assert all(pair["rejected"] != pair["chosen"] for pair in pairs)
    assert len({pair["rejected"] for pair in pairs}) > 10
