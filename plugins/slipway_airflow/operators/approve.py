"""Waits for a person where the recipe says that one decides; skipped where the gates alone do."""

from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException

from pipeline import settings
from pipeline.contracts.specs import EvaluateCompressedResult, PlanResult, RegisterResult
from slipway_airflow.operators.step import told_apart
from slipway_airflow.upstream import Upstream


class ApproveOperator(ApprovalOperator):
    """Shows the scores, and lets the release go on to `promote` when somebody approves. A refusal fails the task, so
    that the run shows that nothing was promoted."""

    ui_color = "#fff1cc"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(subject="Promote the new version?", fail_on_reject=True, **kwargs)

    def execute(self, context: Context) -> Any:
        with told_apart():
            upstream = Upstream(context, settings.load())
            recipe = upstream.result("plan", PlanResult).recipe
            if recipe.promote.policy != "manual":
                raise AirflowSkipException("the recipe's promote.policy is auto: the gates decide")
            registered = upstream.result("register", RegisterResult)
            evaluation = upstream.result("evaluate_compressed", EvaluateCompressedResult)
        self.subject = f"Promote {registered.name} version {registered.version}?"
        self.body = describe(evaluation, recipe.evaluate.primary_metric)
        return super().execute(context)


def describe(evaluation: EvaluateCompressedResult, metric: str) -> str:
    """What a person needs for the decision, as Markdown."""
    after, before = evaluation.scores.primary(metric), evaluation.baseline.primary(metric)
    return (
        f"- {metric} as served: **{after.value:.4f}** ({after.low:.4f} to {after.high:.4f}) on"
        f" {evaluation.scores.rows} held-out rows\n"
        f"- before compression: {before.value:.4f} ({before.low:.4f} to {before.high:.4f})\n"
        f"- form: {evaluation.scheme}, {evaluation.size_bytes / 1e6:.1f} MB of weights\n"
        f"- {evaluation.reason}\n"
    )


def approved_by(answer: dict[str, Any] | None) -> str | None:
    """Who approved, from the XCom of `approve`; None if nobody was asked."""
    user = (answer or {}).get("responded_by_user")
    return str(user.get("name") or user.get("id")) if user else None
