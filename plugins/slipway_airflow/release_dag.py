"""The release DAG: one task a step, each waiting for what it reads. dags/release.py makes the one with the trigger
form; a recipe with a schedule gets one of its own.

The functions say what each step works on: they read the results of the tasks before from their manifests.
"""

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, TriggerRule

from pipeline import recipe_files
from pipeline.contracts import release
from pipeline.contracts.base import ModelRef, Spec
from pipeline.contracts.recipe import Resources
from pipeline.contracts.specs import EvaluateCompressedResult, PlanResult, PlanSpec
from pipeline.errors import SpecError
from slipway_airflow.operators.approve import ApproveOperator, approved_by
from slipway_airflow.operators.step import StepOperator
from slipway_airflow.params import release_params
from slipway_airflow.upstream import Upstream, Work

PLAN_DEADLINE_S = 300.0
"""The plan reads the recipe, so the recipe's own limits are not known yet."""


def release_dag(*, dag_id: str, schedule: str | None = None, recipe: str | None = None) -> DAG:
    """The DAG of a release.

    Args:
        schedule: a cron expression; None for runs that are asked for.
        recipe: the recipe's name or path, which scheduled runs use and the trigger form proposes.
    """
    with DAG(
        dag_id=dag_id,
        schedule=schedule,
        start_date=datetime(2025, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=4 if schedule is None else 1,
        params=release_params(recipe),
        default_args={"owner": "slipway"},
        tags=["slipway"],
        doc_md=__doc__,
        dagrun_timeout=timedelta(days=3),
    ) as dag:
        plan = StepOperator(step="plan", work=plan_work)
        validate = StepOperator(step="validate", work=validate_work)
        finetune = StepOperator(step="finetune", work=finetune_work)
        evaluate = StepOperator(step="evaluate", work=evaluate_work)
        compress = StepOperator(step="compress", work=compress_work)
        evaluate_compressed = StepOperator(step="evaluate_compressed", work=evaluate_compressed_work)
        register = StepOperator(step="register", work=register_work)
        approve = ApproveOperator(task_id="approve")
        promote = StepOperator(step="promote", work=promote_work, trigger_rule=TriggerRule.NONE_FAILED)
        plan >> validate >> finetune >> [evaluate, compress] >> evaluate_compressed >> register
        register >> approve >> promote
    return dag


def plan_work(upstream: Upstream) -> Work:
    """Reads the recipe file now, at run time; the step checks it."""
    return plan_of(recipe_fields(upstream), upstream.run_id)


def recipe_fields(upstream: Upstream) -> dict[str, Any]:
    """Of the recipe file as it is now, with the run's overrides."""
    params = known_params(upstream.params)
    path = recipe_files.resolve_recipe(params["recipe"], upstream.settings.home_path)
    return recipe_files.apply_overrides(recipe_files.load_recipe(path), overrides_of(params), folder=path.parent)


def plan_of(fields: dict[str, Any], request_id: str) -> Work:
    """The plan of a recipe's fields."""
    return Work(
        spec=PlanSpec(recipe=fields, request_id=request_id),
        deadline_s=PLAN_DEADLINE_S,
        release=str(fields.get("name", "slipway")),
        resources=Resources().control,
        resources_field="resources.control",
    )


def validate_work(upstream: Upstream) -> Work:
    plan = _plan(upstream)
    return _work(plan, release.validate_spec(plan), plan.recipe.deadlines.validate_s)


def finetune_work(upstream: Upstream) -> Work:
    plan = _plan(upstream)
    spec = release.finetune_spec(plan, upstream.ref("validate"))
    settings = plan.recipe.finetune
    work = _work(plan, spec, plan.recipe.deadlines.finetune_s, uses="finetune", nodes=settings.nodes)
    return dataclasses.replace(work, min_nodes=settings.min_nodes)


def evaluate_work(upstream: Upstream) -> Work:
    plan = _plan(upstream)
    spec = release.evaluate_spec(plan, upstream.ref("validate"), upstream.ref("finetune"))
    return _work(plan, spec, plan.recipe.deadlines.evaluate_s, uses="evaluate")


def compress_work(upstream: Upstream) -> Work:
    plan = _plan(upstream)
    spec = release.compress_spec(plan, upstream.ref("validate"), upstream.ref("finetune"))
    return _work(plan, spec, plan.recipe.deadlines.compress_s, uses="compress")


def evaluate_compressed_work(upstream: Upstream) -> Work:
    plan = _plan(upstream)
    spec = release.evaluate_compressed_spec(
        plan,
        dataset=upstream.ref("validate"),
        finetuned=upstream.ref("finetune"),
        evaluated=upstream.ref("evaluate"),
        compressed=upstream.ref("compress"),
    )
    return _work(plan, spec, plan.recipe.deadlines.evaluate_s * len(spec.ladder), uses="evaluate")


def register_work(upstream: Upstream) -> Work:
    plan = _plan(upstream)
    spec = release.register_spec(
        plan,
        dataset=upstream.ref("validate"),
        finetuned=upstream.ref("finetune"),
        bundle=_bundle(upstream),
        evaluation=upstream.ref("evaluate_compressed"),
    )
    return _work(plan, spec, plan.recipe.deadlines.register_s)


def promote_work(upstream: Upstream) -> Work:
    plan = _plan(upstream)
    spec = release.promote_spec(
        plan, upstream.ref("register"), request_id=upstream.run_id, approved_by=approved_by(upstream.xcom("approve"))
    )
    return _work(plan, spec, plan.recipe.deadlines.promote_s)


def known_params(params: dict[str, Any]) -> dict[str, Any]:
    """Airflow takes any field that a run's `conf` adds; a misspelt one must not be ignored."""
    known = release_params()
    if unknown := sorted(params.keys() - known.keys()):
        raise SpecError(f"the run's conf has unknown fields {unknown}; expected some of {sorted(known)}")
    return params


def _plan(upstream: Upstream) -> PlanResult:
    return upstream.result("plan", PlanResult)


def _work(plan: PlanResult, spec: Spec, deadline_s: float, *, uses: str = "control", nodes: int = 1) -> Work:
    """`uses` is the field of `recipe.resources` with the limits of the step."""
    return Work(
        spec=spec,
        deadline_s=deadline_s,
        release=plan.recipe.name,
        nodes=nodes,
        resources=getattr(plan.recipe.resources, uses),
        resources_field=f"resources.{uses}",
    )


def _bundle(upstream: Upstream) -> ModelRef:
    evaluation = upstream.result("evaluate_compressed", EvaluateCompressedResult)
    return release.bundle_ref(evaluation, finetuned=upstream.ref("finetune"), compressed=upstream.ref("compress"))


def overrides_of(params: dict[str, Any]) -> dict[str, Any]:
    """The form's data set fields are overrides under friendlier names; naming data replaces generated data."""
    overrides = dict(params["overrides"] or {})
    named = {"dataset.uri": params["dataset_uri"], "dataset.eval_uri": params["eval_uri"]}
    overrides |= {key: uri for key, uri in named.items() if uri}
    if all(named.values()):
        overrides["dataset.generate"] = None
    return overrides
