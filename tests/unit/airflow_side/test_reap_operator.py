"""The daily clearing up."""

import os
import time
from pathlib import Path
from typing import Any, cast

import pytest
from airflow.sdk import Context

from slipway_airflow.backends.base import Claim, JobRequest
from slipway_airflow.backends.job_folders import JobFolder
from slipway_airflow.operators.reap import ReapOperator

DAY_S = 86_400


def ended_job(home_path: Path, name: str, *, days_ago: int) -> JobFolder:
    """A job that succeeded."""
    job = JobFolder(home_path / "jobs" / name)
    (job.path / "claims").mkdir(parents=True)
    with job.locked():
        job.begin(
            JobRequest(
                job_id=name,
                environment="control",
                arguments=("-m", "pipeline", "validate"),
                spec="{}",
                deadline_s=60,
                claim=Claim(holder="run/task", token="one"),
            )
        )
        job.finish(0)
    os.utime(job.path, times=(time.time() - days_ago * DAY_S,) * 2)
    return job


def test_jobs_that_ended_long_ago_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's own number of days decides."""
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path))
    old, young = ended_job(tmp_path, "validate-1", days_ago=40), ended_job(tmp_path, "validate-2", days_ago=20)
    context = cast(Context, cast(Any, {"params": {"keep_days": 30}}))
    assert ReapOperator(task_id="reap").execute(context) == 1
    assert young.exists()
    assert not old.path.exists()
