"""Shows a DAG run's tasks as they go: a table that changes on a terminal, a line for each change elsewhere."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from rich.live import Live
from rich.table import Table

from pipeline.commands import jobs
from pipeline.commands.airflow_api import AirflowApi
from pipeline.commands.output import console, in_seconds
from pipeline.contracts.base import Contract
from pipeline.stack.layout import Layout

POLL_S = 1.0
PROGRESS_EVERY_S = 10.0
"""At least so long between two progress lines of a task where there is no terminal."""
ENDED = ("success", "failed")
WAITING = (None, "scheduled", "queued")
ASKS = "awaiting_input"
TRIAL = "trial"
"""The mapped task of a search; an instance of it that is skipped was pruned."""
COLOURS = {
    "success": "green",
    "failed": "red",
    "upstream failed": "red",
    "skipped": "dim",
    "pruned": "dim",
    "up for retry": "yellow",
    "awaiting input": "yellow",
}


class TaskView(Contract):
    """One task at one moment."""

    task_id: str
    """With its number, if it is an instance of a mapped task."""
    state: str
    """Airflow's, with `deferred` called running and no state at all called waiting."""
    elapsed_s: float | None
    note: str
    """Its last progress line."""


def watch(layout: Layout, api: AirflowApi, run: tuple[str, str], *, until: tuple[str, ...] = ()) -> str:
    """Shows the run until it ends.

    Args:
        run: the ids of its DAG and its own.
        until: tasks; once one of them has ended, all is decided, and what is still tidied up is not waited for.

    Returns:
        Its state, or that of the task that decided: success or failed.
    """
    show = _Table() if console.is_terminal else _Lines()
    with show:
        while True:
            state, tasks = api.run_state(*run), api.tasks(*run)
            show.update(view(layout, run[1], tasks))
            decided = next((task for task in tasks if task["task_id"] in until and task["state"] in ENDED), None)
            if decided:
                return str(decided["state"])
            if state in ENDED or not state:
                return state or "failed"
            time.sleep(POLL_S)


def view(layout: Layout, run_id: str, tasks: Iterable[dict[str, Any]]) -> list[TaskView]:
    """The tasks in the order of their steps, with what their jobs say."""
    return [_task_view(layout, run_id, task) for task in in_order(tasks)]


def in_order(tasks: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that began first; then the others, as the DAGs have them."""
    known = ["plan", "trials", "validate", "trial", "study", "release"]
    known += ["finetune", "evaluate", "compress", "evaluate_compressed", "register", "approve"]
    known += ["start_canary", "shift", "promote", "roll_back", "retire"]
    ranks = {name: rank for rank, name in enumerate(known)}

    def place(task: dict[str, Any]) -> tuple[int, str, int]:
        return ranks.get(task["task_id"], len(known)), task["task_id"], task.get("map_index", -1)

    return sorted(tasks, key=place)


def _task_view(layout: Layout, run_id: str, task: dict[str, Any]) -> TaskView:
    state = task["state"]
    note = ""
    if state in ("running", "deferred"):
        job = jobs.job_of_task(layout, run_id, task["task_id"], task.get("map_index", -1))
        note = job.progress() if job else "waits for other trials" if task["task_id"] == TRIAL else ""
    elif state == ASKS:
        note = "waits for a person: open the run in Airflow and approve or reject"
    # A task that has begun and is queued again is on its way back from the triggerer.
    waits = state in WAITING and not task["start_date"]
    shown = "waiting" if waits else "running" if state in (*WAITING, "deferred") else str(state).replace("_", " ")
    if task["task_id"] == TRIAL and shown == "skipped":
        shown = "pruned"
    note = note or (task.get("rendered_map_index") or "" if task["task_id"] == TRIAL else "")
    return TaskView(task_id=name_of(task), state=shown, elapsed_s=elapsed_s(task), note=note[:100])


def name_of(task: dict[str, Any]) -> str:
    """The task's id; an instance of a mapped task by its number, too."""
    index = task.get("map_index", -1)
    return f"{task['task_id']} {index}" if index >= 0 else str(task["task_id"])


def elapsed_s(task: dict[str, Any]) -> float | None:
    """From the task's start to its end or to now."""
    if not task["start_date"]:
        return None
    end = datetime.fromisoformat(task["end_date"]) if task["end_date"] else datetime.now(UTC)
    return max(0.0, (end - datetime.fromisoformat(task["start_date"])).total_seconds())


class _Lines:
    """For logs and pipes."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, str]] = {}
        self._told_at: dict[str, float] = {}

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def update(self, tasks: list[TaskView]) -> None:
        for task in tasks:
            state, note = self._seen.get(task.task_id, ("waiting", ""))
            is_new = task.state != state
            may_tell = time.monotonic() - self._told_at.get(task.task_id, 0.0) > PROGRESS_EVERY_S
            if is_new or (task.note != note and may_tell):
                took = f" {in_seconds(task.elapsed_s)}" if task.elapsed_s is not None else ""
                note_text = f"  {task.note}" if task.note else ""
                console.print(f"{task.task_id}: {task.state}{took}{note_text}", markup=False)
                self._seen[task.task_id] = (task.state, task.note)
                self._told_at[task.task_id] = time.monotonic()


class _Table:
    """For people at a terminal."""

    def __init__(self) -> None:
        self._live = Live(console=console, refresh_per_second=4)

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, tasks: list[TaskView]) -> None:
        table = Table(box=None, pad_edge=False)
        for heading in ("step", "state", "time", ""):
            table.add_column(heading, justify="right" if heading == "time" else "left", no_wrap=True)
        for task in tasks:
            colour = COLOURS.get(task.state, "bold" if task.state == "running" else "dim")
            took = in_seconds(task.elapsed_s) if task.elapsed_s is not None else ""
            table.add_row(task.task_id, f"[{colour}]{task.state}[/{colour}]", took, task.note.replace("[", "\\["))
        self._live.update(table)
