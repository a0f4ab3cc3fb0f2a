"""Clears up after jobs, whatever backend ran them."""

from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator, Context

from pipeline import settings
from slipway_airflow.backends import open_backend


class ReapOperator(BaseOperator):
    """Drops the jobs that ended more than the run's `keep_days` ago; returns how many."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("retries", 2)
        kwargs.setdefault("retry_delay", timedelta(minutes=5))
        super().__init__(**kwargs)

    def execute(self, context: Context) -> int:
        keep = timedelta(days=context["params"]["keep_days"])
        reaped = open_backend(settings.load()).reap(keep.total_seconds())
        self.log.info("dropped %d jobs that ended more than %d days ago", reaped, keep.days)
        return reaped
