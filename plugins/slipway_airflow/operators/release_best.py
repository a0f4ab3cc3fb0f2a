"""Releases the best trial of a search."""

from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException

from pipeline import settings
from pipeline.contracts.study import RELEASE_RUN_PREFIX
from slipway_airflow.operators.step import told_apart
from slipway_airflow.search_steps import release_conf, search_of
from slipway_airflow.upstream import Upstream


class ReleaseBestOperator(TriggerDagRunOperator):
    """Starts the release DAG with the best values; skipped where the recipe's `search.release` is false."""

    ui_color = "#e0ffe8"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(trigger_dag_id="release", logical_date=None, skip_when_already_exists=True, **kwargs)

    def execute(self, context: Context) -> Any:
        with told_apart():
            upstream = Upstream(context, settings.load())
            if not search_of(upstream).release:
                raise AirflowSkipException("the recipe's search.release is false: the best trial is not released")
            self.conf = release_conf(upstream)
        self.trigger_run_id = f"{RELEASE_RUN_PREFIX}{upstream.run_id}"
        return super().execute(context)
