"""Once a day: ends what lost jobs left running, and drops the records and logs of jobs that ended long ago.

Artifacts stay: a release that needs a finished step finds it in the store, with or without the job that made it.
"""

from datetime import UTC, datetime

from airflow.sdk import DAG

from slipway_airflow.operators.reap import ReapOperator
from slipway_airflow.params import maintenance_params

with DAG(
    dag_id="maintenance",
    schedule="@daily",
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params=maintenance_params(),
    default_args={"owner": "slipway"},
    tags=["slipway"],
    doc_md=__doc__,
) as dag:
    ReapOperator(task_id="reap")
