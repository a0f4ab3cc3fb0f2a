"""`slipway release` and `slipway validate`: checks the recipe, starts the DAG run, shows it, follows its rollout."""

import json
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import inputs, recipe_files
from pipeline.commands import jobs, live, summary
from pipeline.commands.airflow_api import AirflowApi
from pipeline.commands.fit import check_fit
from pipeline.commands.output import console, here
from pipeline.contracts.recipe import Recipe
from pipeline.errors import SlipwayError, SpecError
from pipeline.fleet.views import read_fleet
from pipeline.stack.layout import Layout

RELEASE, ROLLOUT = "release", "rollout"
ROLLOUT_START_S = 180.0
"""Within this, the fleet has noticed a new champion."""
POLL_S = 1.0


def validate(recipe: str, overrides: list[str]) -> None:
    """Checks a recipe and says what it would release."""
    layout, _ = here()
    path, checked, _ = read_recipe(layout, recipe, overrides)
    forecast = check_fit(checked)
    console.print(f"[green]✓[/green] {path} is a valid recipe for {checked.name}", soft_wrap=True)
    console.print(f"  {forecast}", soft_wrap=True)
    if checked.search is not None:
        from pipeline.commands import search

        console.print(f"[green]✓[/green] search: {search.described(search.searched(path, checked, overrides))}")


def release(recipe: str, overrides: list[str], *, wait: bool, summary_path: Path | None) -> None:
    """Releases a recipe.

    Raises:
        SpecError: the recipe is wrong, or the stack is down.
        SlipwayError: the release failed; the message says at which step and why.
    """
    layout, _ = here()
    path, checked, changed = read_recipe(layout, recipe, overrides)
    check_fit(checked)
    api = connect(layout)
    api.await_dag(RELEASE)
    run_id = new_run_id(checked.name)
    api.trigger(RELEASE, run_id, {"recipe": str(path), "overrides": changed})
    console.print(f"Release {run_id} of {path.name}: {api.run_url(RELEASE, run_id)}", soft_wrap=True)
    if not wait:
        return
    try:
        follow(layout, api, run_id, summary_path)
    except KeyboardInterrupt:
        console.print(
            f"\nThe release goes on. Look at it in Airflow: {api.run_url(RELEASE, run_id)}"
            "\n`./slipway logs STEP --follow` shows a step's log, `./slipway status` what is served."
        )
        raise


def read_recipe(layout: Layout, recipe: str, overrides: list[str]) -> tuple[Path, Recipe, dict[str, Any]]:
    """The recipe's file, the checked recipe, and the overrides with their paths made absolute.

    Raises:
        SpecError: with every problem that was found.
    """
    path = recipe_files.resolve_recipe(recipe, layout.home_path)
    parsed = recipe_files.parse_overrides(overrides)
    checked = recipe_files.check_recipe(recipe_files.apply_overrides(recipe_files.load_recipe(path), parsed))
    inputs.check_local_paths(checked)
    anchored = {key: _value_at(recipe_files.apply_overrides({}, {key: value}), key) for key, value in parsed.items()}
    return path, checked, anchored


def connect(layout: Layout) -> AirflowApi:
    """Airflow's API.

    Raises:
        SpecError: the stack is down.
    """
    api = AirflowApi(layout)
    if not api.is_up():
        raise SpecError(f"Airflow at {api.base_url} does not answer: start the stack with `./slipway up`")
    return api


def new_run_id(name: str) -> str:
    return f"cli__{name}__{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}__{secrets.token_hex(3)}"


def follow(layout: Layout, api: AirflowApi, run_id: str, summary_path: Path | None) -> None:
    """Shows the run and its rollout, then the summary.

    Raises:
        SlipwayError: the release, or its rollout, failed.
    """
    started, began = time.monotonic(), time.time()
    state = live.watch(layout, api, (RELEASE, run_id))
    if state != "success":
        raise failure(layout, api, RELEASE, run_id)
    report = summary.collect(layout, api, RELEASE, run_id)
    if report.promoted:
        rollout_id = follow_rollout(layout, api, (str(report.model), str(report.version)), since=began)
        report = report.with_rollout(layout, api, ROLLOUT, rollout_id)
    report = report.model_copy(update={"duration_s": round(time.monotonic() - started, 1)})
    summary.show(report)
    if summary_path:
        summary_path.write_text(json.dumps(report.model_dump(mode="json"), indent=2) + "\n")
    if report.promoted and report.serving_version != report.version:
        raise SlipwayError(f"{report.model} version {report.version} was not rolled out: {report.rollout_reason}")


def follow_rollout(layout: Layout, api: AirflowApi, served: tuple[str, str], *, since: float) -> str | None:
    """Shows the rollout that brings a version, until it ends.

    Args:
        served: the model's name and the version.
        since: seconds since the epoch; a rollout of the version that ended before is another one's.

    Returns:
        The id of its DAG run; None if the version served already.

    Raises:
        SlipwayError: no rollout began.
    """
    name, version = served
    console.print(f"\nRollout of {name} version {version}", soft_wrap=True)
    deadline = time.monotonic() + ROLLOUT_START_S
    while time.monotonic() < deadline:
        model = read_fleet(layout.home_path).get(name)
        rollout = next((r for r in reversed(model.history) if r.version == version), None) if model else None
        if rollout and (rollout.outcome == "running" or rollout.started_at >= since):
            # Its last task, `retire`, keeps the replaced replicas warm for a while.
            live.watch(layout, api, (ROLLOUT, rollout.request_id), until=("promote", "roll_back"))
            return rollout.request_id
        if _serves(layout, name, version):
            console.print("It is served already.")
            return None
        time.sleep(POLL_S)
    raise SlipwayError(
        f"no rollout of {name} version {version} began within {ROLLOUT_START_S:.0f} s: look at the DAG `{ROLLOUT}` in"
        f" Airflow ({api.base_url}) and at `./slipway logs airflow-triggerer`"
    )


def roll_out_again(layout: Layout, api: AirflowApi, champion: tuple[str, str], *, wait: bool) -> None:
    """Starts a rollout of a version that is the champion already, which nothing else would: its replicas may be gone.

    If they are well, the rollout's plan ends it at once.

    Args:
        champion: the model's name and the version.
        wait: show it until it ends.
    """
    name, version = champion
    run_id = new_run_id(name)
    api.trigger(ROLLOUT, run_id, {"name": name, "version": version})
    if wait:
        live.watch(layout, api, (ROLLOUT, run_id), until=("promote", "roll_back"))


def failure(layout: Layout, api: AirflowApi, dag_id: str, run_id: str) -> SlipwayError:
    """What failed in a run, why, and what to do."""
    failed = [task for task in live.in_order(api.tasks(dag_id, run_id)) if task["state"] == "failed"]
    if not failed:
        return SlipwayError(f"{dag_id} {run_id} failed without a failed task: {api.run_url(dag_id, run_id)}")
    # A failed trial fails no search; what came after it does.
    first = min(failed, key=lambda task: task.get("map_index", -1) >= 0)
    task_id = live.name_of(first)
    job = jobs.job_of_task(layout, run_id, first["task_id"], first.get("map_index", -1))
    why = f"{job.error()}\n  log: {job.path}" if job else "it started no job; its task log is in Airflow"
    return SlipwayError(
        f"step {task_id} failed: {why}\n  run: {api.run_url(dag_id, run_id)}"
        f"\n  When the cause is gone, clear the task in Airflow, or release again: finished steps are reused."
    )


def _serves(layout: Layout, name: str, version: str) -> bool:
    model = read_fleet(layout.home_path).get(name)
    return bool(model and model.serving and model.serving.version == version)


def _value_at(fields: dict[str, Any], key: str) -> Any:
    value: Any = fields
    for part in key.split("."):
        value = value[part]
    return value
