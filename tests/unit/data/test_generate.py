"""The demonstration data."""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline.data.generate import message, support_intents
from pipeline.data.support_phrases import INTENTS
from pipeline.data.text import comparable
from pipeline.errors import SpecError
from pipeline.recipe_files import check_recipe, load_recipe
from pipeline.settings import ROOT

PROGRAM = """
import sys
from pathlib import Path
from pipeline.data.generate import support_intents
folder = Path(sys.argv[1])
support_intents(
    train_rows=500, eval_rows=100, seed=3, train_path=folder / "train.jsonl", eval_path=folder / "eval.jsonl"
)
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str]]]:
    """Prompts and answers of the demonstration's own size."""
    folder = tmp_path_factory.mktemp("generated")
    paths = {split: folder / f"{split}.jsonl" for split in ("train", "eval")}
    support_intents(train_rows=6000, eval_rows=600, seed=7, train_path=paths["train"], eval_path=paths["eval"])
    return {split: [_pair(line) for line in path.read_text().splitlines()] for split, path in paths.items()}


def _pair(line: str) -> tuple[str, str]:
    user, assistant = json.loads(line)["messages"]
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    return user["content"], assistant["content"]


def test_there_are_as_many_rows_as_asked_for_and_at_least_thirty_intents(
    rows: dict[str, list[tuple[str, str]]],
) -> None:
    """Every intent stands in both files, as often as any other give or take one."""
    assert (len(rows["train"]), len(rows["eval"])) == (6000, 600)
    for split in rows.values():
        counts = Counter(answer for _, answer in split)
        assert set(counts) == set(INTENTS)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert len(INTENTS) >= 30


def test_no_prompt_occurs_twice_in_or_across_the_files(rows: dict[str, list[tuple[str, str]]]) -> None:
    """Not even in another case."""
    prompts = [comparable(prompt) for split in rows.values() for prompt, _ in split]
    assert len(set(prompts)) == len(prompts)


def test_the_bytes_are_the_same_whatever_the_hash_seed(tmp_path: Path) -> None:
    """Python orders sets of strings by a seed that differs from process to process."""
    digests = set()
    for hash_seed in ("0", "1", "4242"):
        folder = tmp_path / hash_seed
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], env=environment, check=True, timeout=120)
        both = (folder / "train.jsonl").read_bytes() + (folder / "eval.jsonl").read_bytes()
        digests.add(hashlib.sha256(both).hexdigest())
    assert len(digests) == 1


def test_another_seed_gives_other_rows(tmp_path: Path) -> None:
    """A seed that changes nothing would be no seed."""
    texts = []
    for seed in (1, 2):
        path = tmp_path / f"{seed}.jsonl"
        support_intents(train_rows=100, eval_rows=50, seed=seed, train_path=path, eval_path=tmp_path / "eval.jsonl")
        texts.append(path.read_text())
    assert texts[0] != texts[1]


def test_the_held_out_rows_do_not_depend_on_the_number_of_training_rows(tmp_path: Path) -> None:
    """So that models trained on more or fewer rows can be compared."""
    texts = []
    for train_rows in (100, 300):
        path = tmp_path / f"eval-{train_rows}.jsonl"
        support_intents(
            train_rows=train_rows, eval_rows=80, seed=1, train_path=tmp_path / "train.jsonl", eval_path=path
        )
        texts.append(path.read_text())
    assert texts[0] == texts[1]


def test_every_pattern_expands_to_clean_text() -> None:
    """No bracket, brace or double blank is left over, whatever the dice say."""
    dice = random.Random(0)
    for intent in INTENTS:
        for _ in range(200):
            text = message(intent, dice)
            assert not set("[]{}|") & set(text), text
            assert "  " not in text
            assert text == text.strip()


def test_more_rows_than_there_are_prompts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than searched for without end."""
    monkeypatch.setattr("pipeline.data.generate.message", lambda intent, dice: "always the same")
    with pytest.raises(SpecError, match="lower dataset"):
        support_intents(
            train_rows=10, eval_rows=5, seed=0, train_path=tmp_path / "t.jsonl", eval_path=tmp_path / "e.jsonl"
        )


@pytest.mark.parametrize("name", ["demo", "banking77"])
def test_the_projects_recipes_are_valid(name: str) -> None:
    """The files that the README names."""
    recipe = check_recipe(load_recipe(ROOT / "infra" / "recipes" / f"{name}.yaml"))
    assert recipe.gates.min_score >= 0.85
