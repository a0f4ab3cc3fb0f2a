"""What probes ask."""

import json
from itertools import islice
from pathlib import Path

from pipeline.fleet.probes import FIXED_PROMPTS, MAX_TOKENS, Prompt, prompts_of


def predictions(path: Path, count: int) -> Path:
    rows = [
        {"prompt": "p" * (index + 1), "reference": f"r{index}", "loss": None if index == 0 else 1.0}
        for index in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_row_is_scored_once_and_then_only_asked(tmp_path: Path) -> None:
    """The shorter half of those that fit; a row that is scored again is no new evidence."""
    path = predictions(tmp_path / "predictions.jsonl", 9)
    asked = list(islice(prompts_of(path, max_tokens=16, seed=1), 8))
    assert {prompt.reference for prompt in asked[:4]} == {"r1", "r2", "r3", "r4"}
    assert [prompt.reference for prompt in asked[4:]] == [None] * 4
    assert {prompt.text for prompt in asked[:4]} == {prompt.text for prompt in asked[4:]}
    assert (asked[0].max_tokens, asked[4].max_tokens) == (16, MAX_TOKENS)


def test_the_order_is_drawn(tmp_path: Path) -> None:
    """Rows that come first in the data are no fair sample; the same seed gives the same order."""
    path = predictions(tmp_path / "predictions.jsonl", 100)
    orders = [[prompt.text for prompt in islice(prompts_of(path, max_tokens=16, seed=seed), 40)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_long_answers_are_not_waited_for(tmp_path: Path) -> None:
    """Prompts are asked all the same."""
    path = predictions(tmp_path / "predictions.jsonl", 9)
    assert {prompt.reference for prompt in islice(prompts_of(path, max_tokens=512, seed=1), 8)} == {None}


def test_without_predictions_there_is_a_fixed_prompt(tmp_path: Path) -> None:
    """For ever."""
    asked = list(islice(prompts_of(None, max_tokens=16, seed=1), 3))
    assert [prompt.text for prompt in asked] == list(FIXED_PROMPTS) * 3


def test_a_row_of_several_messages_is_asked_as_such() -> None:
    """Its name in the predictions is the messages as JSON; a text that merely looks like it stays a text."""
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    assert Prompt(json.dumps(messages)).messages == messages
    for text in ("Hi", '[{"a": 1}]', "[{ broken"):
        assert Prompt(text).messages == [{"role": "user", "content": text}]
