"""Rendering held-out rows, and rows that do not fit."""

import json

import pytest

from pipeline.contracts.recipe import Evaluate
from pipeline.errors import DataError, SpecError
from pipeline.evaluation.rows import Row, read_rows, render_rows
from pipeline.evaluation.scoring import say_what_cannot_score

END = ord("$")


class LetterTokenizer:
    """A token a letter; a turn ends in `$`, and a line break follows it."""

    opening = ">"

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt=False):
        assert not tokenize
        turns = "".join(f"{message['role'][0]}>{message['content']}$\n" for message in messages)
        return turns + (f"a{self.opening}" if add_generation_prompt else "")

    def __call__(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in text]}


def conversation(*texts):
    roles = ["user", "assistant"] * 5
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def text(ids):
    return "".join(map(chr, ids))


def test_a_row_is_split_where_the_last_answer_begins_and_ends_with_its_turn():
    """The line break behind the end of turn is no part of the answer: no model generates it."""
    (row,) = render_rows([conversation("hi", "hello")], LetterTokenizer(), {END})
    assert (text(row.prompt_ids), text(row.answer_ids)) == ("u>hi$\na>", "hello$")
    assert (row.prompt, row.reference) == ("hi", "hello")


def test_a_row_of_several_turns_is_named_by_all_of_them():
    """Only the last answer is asked for."""
    (row,) = render_rows([conversation("hi", "hello", "bye", "so long")], LetterTokenizer(), {END})
    assert text(row.prompt_ids) == "u>hi$\na>hello$\nu>bye$\na>"
    assert [message["content"] for message in json.loads(row.prompt)] == ["hi", "hello", "bye"]


def test_a_template_that_changes_the_prompt_is_refused_with_the_row():
    """Its answers could not be told from its prompts."""
    tokenizer = LetterTokenizer()
    tokenizer.opening = "<think>"
    with pytest.raises(SpecError, match=r"held-out row 0: .*does not begin with its prompt"):
        render_rows([conversation("hi", "hello")], tokenizer, {END})


def test_as_many_rows_are_read_as_asked_for(tmp_path):
    """All of them, or the first so many."""
    path = tmp_path / "eval.jsonl"
    path.write_text("".join(json.dumps({"messages": conversation(f"q{n}", "yes")}) + "\n" for n in range(5)))
    assert len(read_rows(path, None)) == 5
    assert [messages[0]["content"] for messages in read_rows(path, 2)] == ["q0", "q1"]


class Log:
    """Keeps what a step says."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def row(number, prompt_tokens, answer_tokens):
    return Row(number=number, prompt="", reference="", prompt_ids=[1] * prompt_tokens, answer_ids=[2] * answer_tokens)


def test_rows_that_do_not_fit_or_cannot_be_matched_are_named():
    """Never silently: both kinds are counted, with their numbers."""
    log = Log()
    rows = [row(0, 10, 5), row(1, 12, 8), row(2, 20, 3), row(3, 5, 6)]
    say_what_cannot_score(rows, settings=Evaluate(max_new_tokens=5), max_model_len=20, job=log)
    assert "2 of 4 held-out rows do not fit max_model_len 20" in log.lines[0]
    assert log.lines[0].endswith("rows 1, 2")
    assert "2 of 4 references are longer than max_new_tokens 5" in log.lines[1]
    assert log.lines[1].endswith("rows 1, 3")


def test_held_out_rows_of_which_none_fits_are_refused():
    """There would be nothing to score."""
    with pytest.raises(DataError, match="none of the 2 held-out rows fits max_model_len 8"):
        say_what_cannot_score([row(0, 9, 1), row(1, 4, 4)], settings=Evaluate(), max_model_len=8, job=Log())
