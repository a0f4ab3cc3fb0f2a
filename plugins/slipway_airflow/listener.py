"""Lets go of a job at once when a user sets the state of the task that waits for it.

The trigger does the same when the triggerer drops it (`JobTrigger.on_kill`), but a triggerer that is away, or that has
not picked the trigger up yet, never does. Runs in the API server, and in it alone.
"""

import threading
from typing import Any

from airflow.listeners import hookimpl


@hookimpl
def on_task_instance_failed(previous_state: Any, task_instance: Any, error: Any) -> None:
    let_go(previous_state, task_instance)


@hookimpl
def on_task_instance_success(previous_state: Any, task_instance: Any) -> None:
    let_go(previous_state, task_instance)


@hookimpl
def on_task_instance_skipped(previous_state: Any, task_instance: Any) -> None:
    let_go(previous_state, task_instance)


def let_go(previous_state: Any, task_instance: Any) -> None:
    """Ends the jobs that only this task wants. Workers and the scheduler name the state before, the API server does
    not: so it was a user."""
    if previous_state is not None:
        return
    from pipeline import settings
    from slipway_airflow.backends import open_backend
    from slipway_airflow.backends.base import holder_of, task_labels

    backend = open_backend(settings.load())
    for job_id, claim in backend.claims_of(holder_of(task_labels(task_instance))):
        # In a thread of its own: a job may take a while to end, and the user's page waits for this.
        threading.Thread(target=backend.cancel, args=(job_id, claim)).start()
