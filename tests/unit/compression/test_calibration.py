"""Which rows the quantizer sees."""

import json

import pytest

from pipeline.compression.calibration import choose_rows, tokenize
from pipeline.errors import DataError


@pytest.fixture
def dataset_path(tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"q{number}"}]} for number in range(50)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def contents(rows):
    return [messages[0]["content"] for messages in rows]


def test_the_choice_depends_on_the_seed_alone(dataset_path):
    """The same seed gives the same rows; another seed, others."""
    first = choose_rows(dataset_path, rows=10, seed=1)
    assert len(first) == 10
    assert choose_rows(dataset_path, rows=10, seed=1) == first
    assert choose_rows(dataset_path, rows=10, seed=2) != first


def test_the_choice_spreads_over_the_file_and_keeps_its_order(dataset_path):
    """Not the first rows, which may all be alike."""
    numbers = [int(content[1:]) for content in contents(choose_rows(dataset_path, rows=10, seed=0))]
    assert numbers == sorted(numbers)
    assert numbers[-1] >= 25


def test_a_small_file_is_used_whole(dataset_path):
    """Fewer rows than asked for are all taken."""
    assert len(choose_rows(dataset_path, rows=256, seed=0)) == 50


def test_a_file_without_rows_is_refused(tmp_path):
    """Nothing to calibrate with."""
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(DataError, match="has no rows"):
        choose_rows(tmp_path, rows=10, seed=0)


def test_rows_are_cut_at_the_length_that_training_used():
    """The whole conversation goes through the template, then the tokenizer is told to cut."""

    class Tokenizer:
        def apply_chat_template(self, messages, *, tokenize):
            return "|".join(message["content"] for message in messages)

        def __call__(self, text, *, add_special_tokens, truncation, max_length):
            assert truncation
            assert not add_special_tokens
            return {"input_ids": list(text)[:max_length]}

    rows = [[{"role": "user", "content": "hello"}, {"role": "assistant", "content": "you"}]]
    assert "".join(tokenize(rows, Tokenizer(), 7)[0]) == "hello|y"
