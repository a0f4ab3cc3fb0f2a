"""A release, asked for by a person: through the trigger form, the API, or `slipway release`."""

from slipway_airflow.release_dag import release_dag

dag = release_dag(dag_id="release")
