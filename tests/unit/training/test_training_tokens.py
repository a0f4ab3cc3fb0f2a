"""Chat rows as tokens: what counts in the loss, and that prompts tokenize in training as they do when served."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.contracts.recipe import InitModel
from pipeline.errors import DataError, SpecError
from pipeline.training.base_model import load_tokenizer, write_new_model
from pipeline.training.tokens import TokenFile, encode, fit, render, write_tokens

ROWS = [
    [{"role": "user", "content": f"Where is my Parcel {number}?"}, {"role": "assistant", "content": "Track order"}]
    for number in range(40)
]
DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Good day"},
    {"role": "user", "content": "Where is my Parcel?"},
    {"role": "assistant", "content": "Track order"},
]


def write_rows(path: Path, rows: list[list[dict[str, str]]]) -> Path:
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of a new model with lower-cased prompts."""
    folder = tmp_path_factory.mktemp("base")
    rows_path = write_rows(folder / "rows.jsonl", ROWS)
    write_new_model(InitModel(vocab_size=300, lowercase_prompts=True), rows_path, folder)
    return load_tokenizer(folder)


def test_the_prompt_tokenizes_in_training_as_it_does_when_served(tokenizer: Any) -> None:
    """The ids before the last answer are those that the chat template gives with a generation prompt."""
    for messages in (ROWS[0], DIALOGUE):
        ids, is_answer = next(encode(tokenizer, [render(tokenizer, messages, where="row")]))
        served = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)
        prompt_ids = served["input_ids"]
        assert ids[: len(prompt_ids)].tolist() == prompt_ids
        assert is_answer[len(prompt_ids) :].all()


def test_only_what_the_assistant_says_is_learnt_and_all_of_it(tokenizer: Any) -> None:
    """Both answers of a dialogue count, with the token that ends them, and nothing else does."""
    ids, is_answer = next(encode(tokenizer, [render(tokenizer, DIALOGUE, where="row")]))
    assert tokenizer.decode(ids[is_answer]) == "Good day<|end|>Track order<|end|>"


def test_prompts_are_lower_cased_and_answers_are_not(tokenizer: Any) -> None:
    """The chat template does it, so that the serving engine does the same."""
    text = tokenizer.apply_chat_template(ROWS[0], tokenize=False)
    assert text == "<|user|> where is my parcel 0?<|end|><|assistant|>Track order<|end|>"


def test_the_tokenizer_of_a_new_model_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    """It is trained from the rows alone."""
    rows_path = write_rows(tmp_path / "rows.jsonl", ROWS)
    for name in ("one", "two"):
        write_new_model(InitModel(vocab_size=300), rows_path, tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    """It is the recipe's fault, not a bug."""
    write_new_model(InitModel(vocab_size=300), write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text('{"version": "1.0", ')
    with pytest.raises(SpecError, match="has no tokenizer that can be loaded"):
        load_tokenizer(tmp_path / "model")


def test_a_row_that_is_too_long_loses_the_beginning_of_its_prompt() -> None:
    """The answer stays whole."""
    (ids, is_answer), cut = fit(np.arange(10, dtype=np.int32), np.arange(10) >= 7, 5)
    assert (ids.tolist(), is_answer.tolist(), cut) == ([5, 6, 7, 8, 9], [False, False, True, True, True], "prompt")


def test_an_answer_that_is_too_long_by_itself_loses_its_end() -> None:
    """One token of the prompt stays, from which the answer's first is predicted."""
    (ids, is_answer), cut = fit(np.arange(10, dtype=np.int32), np.arange(10) >= 3, 4)
    assert (ids.tolist(), is_answer.tolist(), cut) == ([2, 3, 4, 5], [False, True, True, True], "answer")


def test_long_rows_are_counted_and_fit(tokenizer: Any, tmp_path: Path) -> None:
    """The report says how many were shortened, and no row is longer than asked."""
    long_row = [{"role": "user", "content": "word " * 99}, {"role": "assistant", "content": "Track order"}]
    report = write_tokens(
        write_rows(tmp_path / "rows.jsonl", [*ROWS[:3], long_row]), tokenizer, tmp_path / "tokens", max_seq_len=32
    )
    assert (report.rows, report.shortened_prompts, report.shortened_answers) == (4, 1, 0)
    assert TokenFile(tmp_path / "tokens").lengths.max() <= 32


@pytest.mark.parametrize(
    ("rows", "error", "said"),
    [
        ([], DataError, "no rows"),
        ([ROWS[0][:1]], DataError, "rows.jsonl line 1: the last message is not the assistant's"),
    ],
)
def test_rows_that_teach_nothing_are_refused(
    tokenizer: Any, tmp_path: Path, rows: list[list[dict[str, str]]], error: type[Exception], said: str
) -> None:
    """With the file and the line."""
    with pytest.raises(error, match=said):
        write_tokens(write_rows(tmp_path / "rows.jsonl", rows), tokenizer, tmp_path / "tokens", max_seq_len=32)


class Templated:
    """A tokenizer that has another chat template than its own."""

    def __init__(self, tokenizer: Any, template: str | None) -> None:
        self._tokenizer = tokenizer
        self.chat_template = template

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._tokenizer(*arguments, **options)

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> Any:
        return self._tokenizer.apply_chat_template(messages, chat_template=self.chat_template, **options)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "has no chat template"),
        ("{{ messages | length }} messages", "does not begin with the prompt"),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            "renders the assist",
        ),
        ("{{ raise_exception('only one message, please') }}", "refuses the row: only one message, please"),
    ],
)
def test_a_chat_template_that_cannot_be_trained_with_is_refused(
    tokenizer: Any, tmp_path: Path, template: str | None, said: str
) -> None:
    """Before anything is trained, and with the reason."""
    rows_path = write_rows(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(SpecError, match=said):
        write_tokens(rows_path, Templated(tokenizer, template), tmp_path / "tokens", max_seq_len=32)
