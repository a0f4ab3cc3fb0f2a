"""What `slipway search` says before it begins, while it runs, and at its end."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.commands import live, search
from pipeline.commands.app import app
from pipeline.contracts.search import Search
from pipeline.contracts.study import StudyResult, TrialSummary
from pipeline.errors import SpecError
from pipeline.recipe_files import check_recipe, load_recipe, resolve_recipe
from pipeline.stack.layout import Layout

RATE = "finetune.learning_rate"


def task(map_index: int, state: str, title: str | None = None) -> dict[str, Any]:
    dates = {"start_date": "2026-01-01T00:00:00Z", "end_date": None}
    return {"task_id": "trial", "map_index": map_index, "rendered_map_index": title, "state": state, **dates}


def test_the_table_shows_what_was_tried_and_what_became_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Values, epochs and scores rung by rung, seconds, and why a trial did not go on."""
    trials = (
        TrialSummary(number=0, values={RATE: 0.01}, scores=(0.5, 0.9), state="complete", epochs=(2, 6), reason=""),
        TrialSummary(number=1, values={RATE: 0.1}, scores=(0.4,), state="pruned", epochs=(2,), reason="place 2 of 2"),
        TrialSummary(number=2, values={}, scores=(), state="failed", epochs=(), reason="killed\nat night"),
    )
    found = StudyResult(
        objective="eval.exact_match",
        maximize=True,
        best=0,
        score=0.9,
        values={RATE: 0.01},
        trials=trials,
        importances={RATE: 1.0},
    )
    printed = Console(file=StringIO(), width=160)
    printed.print(search.table(found, {"0": 75.0, "1": 20.0}))
    assert isinstance(printed.file, StringIO)
    lines = [line.split() for line in printed.file.getvalue().splitlines()[1:]]
    assert lines[0] == ["trial", "state", "learning_rate", "epochs", "eval.exact_match", "time"]
    assert lines[1] == ["0", "complete", "0.01", "2", "→", "6", "0.5000", "→", "0.9000", "75", "s", "best"]
    assert lines[2] == ["1", "pruned", "0.1", "2", "0.4000", "20", "s", "place", "2", "of", "2"]
    assert lines[3] == ["2", "failed", "killed"]


def test_the_live_view_tells_trials_apart(tmp_path: Path) -> None:
    """By number, in their order; a skipped one was pruned, one without a job waits."""
    tasks = [task(10, "deferred"), task(2, "skipped", "2: learning_rate=0.1"), task(0, "success", "0: x=1")]
    shown = live.view(Layout(tmp_path), "r", tasks)
    assert [(view.task_id, view.state) for view in shown] == [
        ("trial 0", "success"),
        ("trial 2", "pruned"),
        ("trial 10", "running"),
    ]
    assert [view.note for view in shown] == ["0: x=1", "2: learning_rate=0.1", "waits for other trials"]


def test_the_shipped_recipe_can_be_searched(tmp_path: Path) -> None:
    """And says what it will do in a line."""
    path = resolve_recipe("search", tmp_path)
    wanted = search.searched(path, check_recipe(load_recipe(path)), ["search.trials=3"])
    assert "2 side by side, for the highest eval.exact_match" in search.described(wanted)
    assert "one in 3 going on at each of 2 rungs" in search.described(wanted)
    assert "lowest train_loss" in search.described(
        Search.model_validate({"space": {RATE: {"log": [1e-4, 1e-2]}}, "objective": "train_loss", "pruner": None})
    )


def test_a_recipe_that_says_nothing_to_search_is_refused_with_an_example(tmp_path: Path) -> None:
    """As is a space that holds nothing that the recipe allows."""
    path = resolve_recipe("demo", tmp_path)
    with pytest.raises(SpecError, match=r"demo\.yaml has no `search` section.*`slipway search --help`"):
        search.searched(path, check_recipe(load_recipe(path)), [])


def test_paths_among_which_a_search_chooses_are_relative_to_the_recipe(tmp_path: Path) -> None:
    """Like all paths in a recipe; what is no path stays."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "search: {space: {dataset.uri: {choice: [a.jsonl, s3://b/c.jsonl]}, base_model.uri: {choice: [./m, org/m]},"
        " finetune.method: {choice: [full, lora]}, finetune.epochs: 3}}"
    )
    space = load_recipe(path)["search"]["space"]
    assert space["dataset.uri"] == {"choice": [str(tmp_path / "a.jsonl"), "s3://b/c.jsonl"]}
    assert space["base_model.uri"] == {"choice": [str(tmp_path / "m"), "org/m"]}
    assert space["finetune.method"] == {"choice": ["full", "lora"]}
    assert space["finetune.epochs"] == 3


def test_the_help_teaches_every_setting_of_a_search() -> None:
    """A field that is added to the section is explained there, too."""
    command = next(known for known in app.registered_commands if known.callback and known.callback.__name__ == "search")
    assert command.callback is not None
    text = str(command.callback.__doc__)
    assert [name for name in Search.model_fields if f"{name}:" not in text] == []
