"""What each task of the rollout DAG works on, and when it has nothing to do.

A rollout that was refused (the canary did not start, or was found unhealthy) is rolled back, and its run ends as
failed: `roll_back` does its work and then fails with the reason, so that nobody takes the run for a success.
"""

from collections.abc import Callable
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from pipeline.contracts.base import step_key
from pipeline.contracts.manifest import Manifest
from pipeline.contracts.specs import STEPS, RolloutResult, RolloutSpec
from pipeline.errors import SpecError
from slipway_airflow.backends import open_backend
from slipway_airflow.backends.base import job_id
from slipway_airflow.job_log import JobLog
from slipway_airflow.operators.step import StepOperator
from slipway_airflow.upstream import Upstream, Work

DEADLINES_S = {
    "plan": 300.0,
    "start_canary": 3600.0,
    "shift": 366 * 86400.0,
    "promote": 900.0,
    "roll_back": 3600.0,
    "retire": 24 * 3600.0,
}
"""Nets below the limits that the recipe sets (ready_timeout_s, step_s, keep_warm_s), which the phases keep themselves.
That of `shift` is no net, because a person may pause a rollout for days: its steps end by themselves."""
SHIFT_RETRIES = 20
"""Each restart of the stack costs one, and a paused rollout may live through many."""


class PhaseOperator(StepOperator):
    """One phase of a rollout, named like the task."""

    def __init__(self, *, task_id: str, work: Callable[[Upstream], Work], **kwargs: Any) -> None:
        super().__init__(step="rollout", task_id=task_id, work=work, **kwargs)


class RollBackOperator(PhaseOperator):
    """Rolls back, and then fails: see the module's docstring."""

    def _done(self, context: Context, manifest: Manifest, out_uri: str) -> dict[str, str]:
        value = super()._done(context, manifest, out_uri)
        result = RolloutResult.model_validate(manifest.result)
        if result.outcome != "done":
            return value
        context["ti"].xcom_push(key="return_value", value=value)
        raise AirflowFailException(
            f"{result.name} version {result.version} was rolled back to {result.previous or 'nothing'}: {result.reason}"
        )


def plan_work(upstream: Upstream) -> Work:
    """For the model that the event names, or the form. Which version is the champion, the step asks the registry."""
    return _work(_plan_spec(upstream))


def start_canary_work(upstream: Upstream) -> Work:
    return _work(_spec(upstream, "start_canary"))


def shift_work(upstream: Upstream) -> Work:
    spec = _spec(upstream, "shift")
    _go_on_after(upstream, "start_canary", "done", "nothing_to_do", "healthy")
    return _work(spec)


def promote_work(upstream: Upstream) -> Work:
    spec = _spec(upstream, "promote")
    _go_on_after(upstream, "shift", "healthy", "done")
    return _work(spec)


def roll_back_work(upstream: Upstream) -> Work:
    if upstream.find("plan") is None:
        return _work(_after_failed_plan(upstream))
    return _work(_spec(upstream, "roll_back", reason=_refusal(upstream)))


def retire_work(upstream: Upstream) -> Work:
    spec = _spec(upstream, "retire")
    if not (upstream.find("promote") or upstream.find("roll_back")):
        raise AirflowSkipException("neither promoted nor rolled back: there is nothing to retire")
    return _work(spec)


def _work(spec: RolloutSpec) -> Work:
    return Work(spec=spec, deadline_s=DEADLINES_S[spec.phase], release=spec.name)


def _plan_spec(upstream: Upstream) -> RolloutSpec:
    return RolloutSpec(name=_requested_name(upstream), phase="plan", request_id=upstream.run_id)


def _spec(upstream: Upstream, phase: Any, *, reason: str = "") -> RolloutSpec:
    """Of a phase after the plan; skips where there was nothing to roll out."""
    if upstream.find("plan") is None:
        raise AirflowSkipException("there is no plan")
    plan = upstream.result("plan", RolloutResult)
    if plan.outcome != "done":
        raise AirflowSkipException(f"{plan.outcome}: {plan.reason}")
    return RolloutSpec(
        name=plan.name,
        generation=plan.generation,
        phase=phase,
        version=plan.version,
        reason=reason,
        request_id=upstream.run_id,
    )


def _go_on_after(upstream: Upstream, task_id: str, *outcomes: str) -> None:
    result = upstream.result(task_id, RolloutResult)
    if result.outcome not in outcomes:
        raise AirflowSkipException(f"{task_id} ended as {result.outcome}: {result.reason}")


def _refusal(upstream: Upstream) -> str:
    """Why the canary must go; skips if it need not."""
    for task_id in ("shift", "start_canary"):
        if upstream.find(task_id) is None:
            continue
        result = upstream.result(task_id, RolloutResult)
        if result.outcome == "unhealthy":
            return result.reason
        if task_id == "shift" or result.outcome == "superseded":
            raise AirflowSkipException(f"{task_id} ended as {result.outcome}: nothing to roll back")
        return _job_error(upstream, _spec(upstream, "shift"))
    return _job_error(upstream, _spec(upstream, "start_canary"))


def _after_failed_plan(upstream: Upstream) -> RolloutSpec:
    """The plan may have numbered a rollout before it failed: the step knows by the run."""
    try:
        plan = _plan_spec(upstream)
    except SpecError as error:
        raise AirflowSkipException("there is no plan") from error
    return plan.model_copy(update={"phase": "roll_back", "reason": _job_error(upstream, plan)})


def _job_error(upstream: Upstream, spec: RolloutSpec) -> str:
    """The last error in the log of a phase's job."""
    out_uri = f"{upstream.settings.store_uri}/rollout/{step_key('rollout', STEPS['rollout'].version, spec)}"
    log = JobLog(open_backend(upstream.settings), job_id("rollout", out_uri), offset=0)
    for _ in log.rest():
        pass
    return f"{spec.phase} failed: {log.error or 'its job was lost'}"


def _requested_name(upstream: Upstream) -> str:
    """Of the newest event that started the run, else of the form."""
    events = [event for group in (upstream.context.get("triggering_asset_events") or {}).values() for event in group]
    if events:
        newest = max(events, key=lambda event: event.timestamp)
        return str(newest.extra["payload"]["name"])
    name = upstream.params.get("name")
    if not name:
        raise SpecError("a rollout that is started by hand needs `name`: the registered model's name in MLflow")
    return str(name)
