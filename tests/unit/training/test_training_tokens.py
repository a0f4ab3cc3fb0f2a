"""Rows as tokens: what counts in the loss, and that prompts tokenize in training as they do when served."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.contracts.recipe import InitModel
from pipeline.errors import DataError, SpecError
from pipeline.training.base_model import load_tokenizer, write_new_model
from pipeline.training.rendering import encode, fit, render, render_pair
from pipeline.training.tokenizing import write_tokens
from pipeline.training.tokens import TokenFile

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


def write_rows(path: Path, rows: list[list[dict[str, str]]], **fields: str) -> Path:
    path.write_text("".join(json.dumps({"messages": messages, **fields}) + "\n" for messages in rows))
    return path


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new model that lower-cases prompts."""
    folder = tmp_path_factory.mktemp("base")
    write_new_model(InitModel(vocab_size=300, lowercase_prompts=True), write_rows(folder / "rows.jsonl", ROWS), folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> Any:
    return load_tokenizer(model_path)


def test_the_prompt_tokenizes_in_training_as_it_does_when_served(tokenizer: Any) -> None:
    """The ids before the last answer are those that the chat template gives with a generation prompt."""
    for messages in (ROWS[0], DIALOGUE):
        ((ids, is_answer),) = next(encode(tokenizer, [render(tokenizer, messages, where="row")], 200)).lines
        served = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)
        prompt_ids = served["input_ids"]
        assert ids[: len(prompt_ids)].tolist() == prompt_ids
        assert is_answer[len(prompt_ids) :].all()


def test_only_what_the_assistant_says_is_learnt_and_all_of_it(tokenizer: Any) -> None:
    """Both answers of a dialogue count, with the token that ends them, and nothing else does."""
    ((ids, is_answer),) = next(encode(tokenizer, [render(tokenizer, DIALOGUE, where="row")], 200)).lines
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


def test_an_answer_that_the_template_rewrites_later_is_prompt(tokenizer: Any) -> None:
    """As with templates that drop the reasoning of all answers but the last."""
    template = "{% for m in messages %}{{ m.content if m.role != 'assistant' or loop.last else '(said)' }};{% endfor %}"
    rendered = render(Templated(tokenizer, template), DIALOGUE, where="row")
    assert (rendered.prompt, rendered.answers, rendered.earlier) == (
        "Be brief.;Hello;(said);Where is my Parcel?;",
        ("Track order;",),
        (),
    )


def test_both_answers_of_a_pair_follow_the_same_prompt_and_nothing_else_tells_them_apart(tokenizer: Any) -> None:
    """Earlier answers stand before both, so only the last ones count."""
    rendered = render_pair(tokenizer, DIALOGUE, "Who knows", where="row")
    chosen, rejected = next(encode(tokenizer, [rendered], 200)).lines
    assert tokenizer.decode(chosen[0][chosen[1]]) == "Track order<|end|>"
    assert tokenizer.decode(rejected[0][rejected[1]]) == "Who knows<|end|>"
    assert chosen[0][~chosen[1]].tolist() == rejected[0][~rejected[1]].tolist()


def fitted(prompt: int, answers: list[int], max_seq_len: int) -> tuple[list[list[int]], list[list[bool]], str]:
    """Of a prompt of tokens 0, 1, … and answers of tokens 100, 101, …"""
    ids = [np.arange(100, 100 + length, dtype=np.int32) for length in answers]
    found = fit(np.arange(prompt, dtype=np.int32), np.zeros(prompt, dtype=np.bool_), ids, max_seq_len)
    return [line.tolist() for line, _ in found.lines], [flags.tolist() for _, flags in found.lines], found.cut


def test_a_row_that_is_too_long_loses_the_beginning_of_its_prompt() -> None:
    """The answer stays whole."""
    assert fitted(7, [3], 5) == ([[5, 6, 100, 101, 102]], [[False, False, True, True, True]], "prompt")


def test_an_answer_that_is_too_long_by_itself_loses_its_end() -> None:
    """One token of the prompt stays, from which the answer's first is predicted."""
    assert fitted(3, [7], 4) == ([[2, 100, 101, 102]], [[False, True, True, True]], "answer")


def test_both_answers_of_a_pair_lose_the_same_of_their_prompt() -> None:
    """Or one would be judged by another question than the other."""
    lines, _, cut = fitted(7, [3, 1], 5)
    assert (lines, cut) == ([[5, 6, 100, 101, 102], [5, 6, 100]], "prompt")
    lines, _, cut = fitted(7, [9, 1], 5)
    assert (lines, cut) == ([[6, 100, 101, 102, 103], [6, 100]], "answer")


@pytest.mark.parametrize(("prompt", "answer"), [(4, 1), (1, 4), (0, 5)])
def test_a_row_that_just_fits_is_left_whole(prompt: int, answer: int) -> None:
    """Also one without a prompt."""
    lines, _, cut = fitted(prompt, [answer], 5)
    assert (len(lines[0]), cut) == (5, "")


def test_long_rows_are_counted_and_fit(model_path: Path, tmp_path: Path) -> None:
    """The report says how many were shortened, and no row is longer than asked."""
    long_row = [{"role": "user", "content": "word " * 99}, {"role": "assistant", "content": "Track order"}]
    rows_path = write_rows(tmp_path / "rows.jsonl", [*ROWS[:3], long_row])
    report = write_tokens(rows_path, model_path, tmp_path / "tokens", max_seq_len=32)
    assert (report.rows, report.shortened_prompts, report.shortened_answers) == (4, 1, 0)
    tokens = TokenFile(tmp_path / "tokens")
    assert tokens.lengths.max() <= 32
    assert report.tokens == tokens.lengths.sum()


def test_pairs_are_two_rows_of_the_file_each(model_path: Path, tokenizer: Any, tmp_path: Path) -> None:
    """The chosen answer, then the rejected one; the file says that it holds pairs."""
    rows_path = write_rows(tmp_path / "rows.jsonl", ROWS[:3], rejected="Refund")
    report = write_tokens(rows_path, model_path, tmp_path / "tokens", max_seq_len=64, pairs=True)
    tokens = TokenFile(tmp_path / "tokens")
    assert (report.rows, tokens.pairs) == (6, True)
    said = [tokenizer.decode(ids[is_answer]) for ids, is_answer in map(tokens.row, range(6))]
    assert said == ["Track order<|end|>", "Refund<|end|>"] * 3


@pytest.mark.parametrize(
    ("rows", "pairs", "said"),
    [
        ([], False, "no rows"),
        ([ROWS[0][:1]], False, "rows.jsonl line 1: the last message is not the assistant's"),
        ([ROWS[0]], True, "rows.jsonl line 1 has no rejected answer: method dpo learns from validated preference rows"),
    ],
)
def test_rows_that_teach_nothing_are_refused(
    model_path: Path, tmp_path: Path, rows: list[list[dict[str, str]]], pairs: bool, said: str
) -> None:
    """With the file and the line."""
    rows_path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=said):
        write_tokens(rows_path, model_path, tmp_path / "tokens", max_seq_len=32, pairs=pairs)


class Templated:
    """A tokenizer that has another chat template than its own."""

    def __init__(self, tokenizer: Any, template: str) -> None:
        self._tokenizer = tokenizer
        self._template = template

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> Any:
        return self._tokenizer.apply_chat_template(messages, chat_template=self._template, **options)


WITHOUT_ANSWERS = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "pairs", "error", "said"),
    [
        (None, False, SpecError, "has no chat template: add chat_template.jinja to "),
        ("{{ messages | length }} messages", False, SpecError, "does not begin with the prompt"),
        (
            WITHOUT_ANSWERS,
            False,
            DataError,
            "no token of the 40 rows of rows.jsonl counts in the loss: the base model's",
        ),
        (WITHOUT_ANSWERS, True, DataError, "rows.jsonl line 1: the chat template renders an answer as nothing"),
        (
            "{{ raise_exception('only one message, please') }}",
            False,
            SpecError,
            "line 1: the base model's chat template refuses the row: only one message, please",
        ),
    ],
)
def test_a_chat_template_that_cannot_be_trained_with_is_refused(
    model_path: Path, tmp_path: Path, template: str | None, pairs: bool, error: type[Exception], said: str
) -> None:
    """Before anything is trained, and with the reason."""
    shutil.copytree(model_path, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    if template is not None:
        (tmp_path / "model" / "chat_template.jinja").write_text(template)
    rows_path = write_rows(tmp_path / "rows.jsonl", ROWS, rejected="Refund")
    with pytest.raises(error, match=said):
        write_tokens(rows_path, tmp_path / "model", tmp_path / "tokens", max_seq_len=32, pairs=pairs)
