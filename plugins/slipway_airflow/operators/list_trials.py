"""Says which trials a search has: the task that runs them is mapped over the list."""

from typing import Any

from airflow.sdk import BaseOperator, Context

from pipeline import settings
from slipway_airflow.operators.step import told_apart
from slipway_airflow.search_steps import list_trials
from slipway_airflow.upstream import Upstream


class ListTrialsOperator(BaseOperator):
    """Returns the trials' numbers; fails where the recipe has no `search` section."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def execute(self, context: Context) -> list[int]:
        with told_apart():
            return list_trials(Upstream(context, settings.load()))
