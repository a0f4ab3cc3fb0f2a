"""`slipway search`: checks a recipe and what it varies, starts the search, shows it, and follows the best's release."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline import artifacts
from pipeline.commands import live
from pipeline.commands.airflow_api import AirflowApi
from pipeline.commands.output import console, here, in_seconds
from pipeline.commands.release import RELEASE, connect, failure, follow, new_run_id, read_recipe
from pipeline.contracts.recipe import Recipe
from pipeline.contracts.search import Search
from pipeline.contracts.study import RELEASE_RUN_PREFIX, StudyResult, TrialSummary
from pipeline.errors import SpecError
from pipeline.recipe_files import apply_overrides, load_recipe, parse_overrides
from pipeline.stack.layout import Layout

SEARCH = "search"
COLOURS = {"complete": "green", "pruned": "yellow", "failed": "red"}


def search(recipe: str, overrides: list[str], *, wait: bool, summary_path: Path | None) -> None:
    """Searches, and releases the best.

    Raises:
        SpecError: the recipe is wrong, says nothing to search, or the stack is down.
        SlipwayError: the search or the release failed; the message says where and why.
    """
    layout, _ = here()
    path, checked, changed = read_recipe(layout, recipe, overrides)
    wanted = searched(path, checked, overrides)
    api = connect(layout)
    api.await_dag(SEARCH)
    run_id = new_run_id(checked.name)
    api.trigger(SEARCH, run_id, {"recipe": str(path), "overrides": changed})
    console.print(f"Search {run_id} of {path.name}: {api.run_url(SEARCH, run_id)}", soft_wrap=True)
    console.print(described(wanted))
    if not wait:
        return
    try:
        finish(layout, api, run_id, summary_path)
    except KeyboardInterrupt:
        console.print(f"\nThe search goes on. Look at it in Airflow: {api.run_url(SEARCH, run_id)}")
        raise


def searched(path: Path, recipe: Recipe, overrides: list[str]) -> Search:
    """How the recipe is searched, once a first set of values is known to work.

    Raises:
        SpecError: it has no `search` section, or a space that holds nothing that the recipe allows.
    """
    from pipeline.search.sampling import first_values  # Optuna takes a second

    if recipe.search is None:
        raise SpecError(
            f"{path} has no `search` section, so nothing is known to vary; add one, such as"
            " `search: {space: {finetune.learning_rate: {log: [1.0e-4, 1.0e-2]}}}`. `slipway search --help` explains it"
        )
    first_values(recipe.search, apply_overrides(load_recipe(path), parse_overrides(overrides)))
    return recipe.search


def described(search: Search) -> str:
    """What is about to be done, in a line."""
    goal = "highest" if search.maximize else "lowest"
    halving = search.pruner
    pruned = f", one in {halving.factor} going on at each of {halving.rungs} rungs" if halving else ""
    return (
        f"{search.num_trials} trials over {', '.join(search.space)}, {search.parallel} side by side,"
        f" for the {goal} {search.objective}{pruned}"
    )


def finish(layout: Layout, api: AirflowApi, run_id: str, summary_path: Path | None) -> None:
    """Shows the search to its end, its table, and the release of the best trial."""
    if live.watch(layout, api, (SEARCH, run_id)) != "success":
        raise failure(layout, api, SEARCH, run_id)
    found, seconds = result_of(api, run_id)
    show(found, seconds)
    release_id = f"{RELEASE_RUN_PREFIX}{run_id}"
    if api.run_state(RELEASE, release_id):
        console.print(
            f"\nRelease {release_id} of trial {found.best}: {api.run_url(RELEASE, release_id)}", soft_wrap=True
        )
        follow(layout, api, release_id, summary_path)
    elif summary_path:
        summary_path.write_text(json.dumps(found.model_dump(mode="json"), indent=2) + "\n")


def result_of(api: AirflowApi, run_id: str) -> tuple[StudyResult, dict[str, float]]:
    """What the study found, and how many seconds each trial's steps took."""
    ref = api.artifact(SEARCH, run_id, "study")
    if ref is None:
        raise SpecError(f"the run {run_id} of {SEARCH} has no study: clear its task `study` in Airflow")
    manifest = artifacts.read_manifest(ref)
    return StudyResult.model_validate(manifest.result), manifest.figures.get("trial_seconds", {})


def show(found: StudyResult, seconds: dict[str, float]) -> None:
    """Prints the trials, and what mattered."""
    console.print()
    console.print(table(found, seconds))
    console.print()
    console.print(f"best: trial {found.best} with {found.objective} {found.score:.4f}", markup=False)
    console.print("  " + " ".join(f"--set '{key}={value}'" for key, value in found.values.items()), markup=False)
    if found.importances:
        mattered = sorted(found.importances.items(), key=lambda item: -item[1])
        console.print(f"what mattered: {', '.join(f'{key} {share:.0%}' for key, share in mattered)}", markup=False)


def table(found: StudyResult, seconds: dict[str, float]) -> Table:
    """A line for each trial."""
    keys = sorted({key for trial in found.trials for key in trial.values})
    shown = Table(box=None, pad_edge=False, title="What was tried", title_justify="left")
    for heading in ("trial", "state", *(key.rpartition(".")[2] for key in keys), "epochs", found.objective, "time", ""):
        shown.add_column(heading, justify="right" if heading in ("trial", found.objective, "time") else "left")
    for trial in found.trials:
        shown.add_row(*line(trial, keys, seconds.get(str(trial.number), 0.0), is_best=trial.number == found.best))
    return shown


def line(trial: TrialSummary, keys: list[str], seconds: float, *, is_best: bool) -> list[str]:
    colour = COLOURS.get(trial.state, "dim")
    note = "best" if is_best else trial.reason.splitlines()[0] if trial.reason else ""
    return [
        str(trial.number),
        f"[{colour}]{trial.state}[/{colour}]",
        *(_text(trial.values.get(key, "")) for key in keys),
        " → ".join(f"{epochs:g}" for epochs in trial.epochs),
        " → ".join(f"{score:.4f}" for score in trial.scores),
        in_seconds(seconds) if seconds else "",
        note[:100].replace("[", "\\["),
    ]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("[", "\\[")
