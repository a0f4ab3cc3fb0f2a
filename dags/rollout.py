"""A rollout: brings the fleet to the version that the registry calls champion.

Started by the alias: whoever moves `champion` in MLflow (its UI, its API, the release DAG, `slipway promote`), the
watcher sees it within seconds. A newer rollout of the same model supersedes this one, so runs may overlap.
"""

from datetime import UTC, datetime

from airflow.sdk import DAG, Asset, AssetWatcher, TriggerRule

from slipway_airflow import rollout_steps as steps
from slipway_airflow.params import rollout_params
from slipway_airflow.rollout_steps import PhaseOperator, RollBackOperator
from slipway_airflow.triggers.champion import ChampionTrigger

champions = Asset(
    name="champions",
    uri="slipway://registry/champions",
    group="slipway",
    watchers=[AssetWatcher(name="champion_watcher", trigger=ChampionTrigger())],
)

with DAG(
    dag_id="rollout",
    schedule=[champions],
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=16,
    params=rollout_params(),
    default_args={"owner": "slipway"},
    tags=["slipway"],
    doc_md=__doc__,
) as dag:
    plan = PhaseOperator(task_id="plan", work=steps.plan_work)
    start_canary = PhaseOperator(task_id="start_canary", work=steps.start_canary_work)
    shift = PhaseOperator(task_id="shift", work=steps.shift_work, retries=steps.SHIFT_RETRIES)
    promote = PhaseOperator(task_id="promote", work=steps.promote_work)
    # Runs after failures too, and decides by itself; its own failure is what marks the run as failed.
    roll_back = RollBackOperator(task_id="roll_back", work=steps.roll_back_work, trigger_rule=TriggerRule.ALL_DONE)
    # A teardown: Airflow judges the run by the tasks before it, so its success does not hide a failed roll_back.
    retire = PhaseOperator(task_id="retire", work=steps.retire_work).as_teardown()
    plan >> start_canary >> shift >> [promote, roll_back] >> retire
