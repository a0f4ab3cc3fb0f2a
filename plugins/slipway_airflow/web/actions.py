"""What the page's buttons do: the same operations as `slipway promote`, `rollback` and `rollout pause` and `resume`.

They run in Airflow's API server, not as a DAG run: a bad version is to be gone within a second, and whoever presses is
to be told at once what came of it. This module alone may use the fleet's and the registry's write side
(docs/adr/0187). It is imported when somebody who may press looks at the page for the first time.
"""

from pipeline.errors import SpecError
from pipeline.fleet import operations
from pipeline.fleet.views import read_fleet
from pipeline.registry.models import Registry
from pipeline.registry.promotion import promote_by_hand
from pipeline.stack.layout import Layout
from slipway_airflow.web.presses import Press


def make_ready() -> None:
    """Imports what a press needs, MLflow's client above all, which takes seconds: before somebody is in a hurry."""
    from mlflow import MlflowClient  # noqa: F401 - its import is what takes the time


def perform(layout: Layout, press: Press, *, by: str) -> str:
    """Does what was pressed.

    Args:
        by: the Airflow user, for the audit log.

    Returns:
        A sentence that says what came of it.

    Raises:
        SpecError: it cannot be done now, or the page was out of date when it was pressed.
        DataError: (promote) the version cannot be served.
        TransientError: the gateway or MLflow does not answer, or somebody moved the alias at the same time.
    """
    _check_still_true(layout, press)
    if press.action == "promote":
        return _promote(layout, press, by)
    if press.action == "rollback":
        done = operations.rollback(layout, press.model, by=by, reason=press.reason)
        return f"{press.model} version {done.version} is the champion again: {done.reason}"
    act = operations.pause if press.action == "pause" else operations.resume
    rollout = act(layout, press.model, by=by, reason=press.reason)
    state = "is paused" if press.action == "pause" else "goes on"
    return f"Rollout {rollout.generation} of {press.model} {state}."


def _check_still_true(layout: Layout, press: Press) -> None:
    """Two people may press at once, or one on a page that has not been told yet: nobody acts on a rollout unseen."""
    model = read_fleet(layout.home_path).get(press.model)
    newest = model.generation if model else 0
    if newest != press.generation:
        raise SpecError(
            f"rollout {newest} of {press.model} has begun since the page was drawn, which showed {press.generation}:"
            " nothing was done; look at what has changed, then press again"
        )


def _promote(layout: Layout, press: Press, by: str) -> str:
    if press.version is None:
        raise SpecError(f"to promote a version of {press.model}, say which: choose one in the dialog")
    registry = Registry(layout.ports().url("mlflow"), layout.home_path)
    done = promote_by_hand(registry, name=press.model, version=press.version, promoted_by=by, reason=press.reason)
    if not done.changed:
        return f"Version {done.version} of {done.name} is the champion already."
    before = f" after version {done.champion_before}" if done.champion_before else ""
    return f"Version {done.version} of {done.name} is the champion now{before}: a rollout begins within seconds."
