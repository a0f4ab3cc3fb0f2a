"""The folder of a job, into which the job's own step may write."""

from pathlib import Path

import pytest

from pipeline.errors import SpecError
from slipway_airflow.backends.base import Claim, JobRequest
from slipway_airflow.backends.job_folders import JobFolder

REQUEST = JobRequest(
    job_id="validate-1",
    environment="control",
    arguments=("-m", "pipeline", "validate"),
    spec="{}",
    deadline_s=60,
    claim=Claim(holder="run/task", token="one"),
)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A file that the step may not read or write."""
    path = tmp_path / "key"
    path.write_text("a secret\n")
    return path


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    folder = tmp_path / "validate-1"
    folder.mkdir()
    return JobFolder(folder)


def test_a_log_that_was_replaced_by_a_link_is_not_read_or_written(job: JobFolder, foreign: Path) -> None:
    """What reads it may read more than the step."""
    job.log_path.symlink_to(foreign)
    with pytest.raises(SpecError, match="is a link"):
        job.read_log(0, 1000)
    with pytest.raises(SpecError, match="is a link"):
        job.say("lost")
    assert foreign.read_text() == "a secret\n"


@pytest.mark.parametrize("name", ["spec.json", "request.json"])
def test_what_the_next_attempt_writes_goes_nowhere_else(job: JobFolder, foreign: Path, name: str) -> None:
    """A link that an earlier attempt left is replaced, not followed."""
    (job.path / name).symlink_to(foreign)
    job.begin(REQUEST)
    assert foreign.read_text() == "a secret\n"
    assert job.spec_path.read_text() == "{}"
