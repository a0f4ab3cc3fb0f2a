"""The folder of a job, into which the job's own step may write."""

from pathlib import Path

import pytest

from pipeline import settings
from pipeline.errors import SpecError
from slipway_airflow.backends.base import Claim, JobRequest
from slipway_airflow.backends.job_folders import JobFolder
from slipway_airflow.backends.process import ProcessBackend

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


CLAIM = Claim(holder="run/task", token="one")


def test_a_claim_that_was_replaced_by_a_link_is_not_read_or_written(job: JobFolder, foreign: Path) -> None:
    """Its content would be told as a token."""
    job.claim(CLAIM)
    path = next((job.path / "claims").iterdir())
    path.unlink()
    path.symlink_to(foreign)
    with pytest.raises(SpecError, match="is a link"):
        job.claim_of(CLAIM.holder)
    job.claim(CLAIM)
    assert job.claim_of(CLAIM.holder) == CLAIM
    assert foreign.read_text() == "a secret\n"


def test_a_folder_of_claims_that_was_replaced_by_a_link_is_refused(job: JobFolder, tmp_path: Path) -> None:
    """Whatever is written would land elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (job.path / "claims").symlink_to(elsewhere)
    with pytest.raises(SpecError, match="is a link"):
        job.claim(CLAIM)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["cancelled", "stopping"])
def test_a_mark_goes_nowhere_else(job: JobFolder, tmp_path: Path, name: str) -> None:
    """A link is refused, whether or not its target is there."""
    (job.path / name).symlink_to(tmp_path / "made")
    with pytest.raises(SpecError, match="is a link"):
        job.mark(name)
    assert not (tmp_path / "made").exists()


def test_one_damaged_job_does_not_keep_the_others_from_being_cleared_away(tmp_path: Path) -> None:
    """The message names its folder, and what to do."""
    backend = ProcessBackend(settings.load({"SLIPWAY_HOME": str(tmp_path)}))
    for job_id in ("a-damaged", "b-whole"):
        job = JobFolder(backend.jobs_path / job_id)
        job.path.mkdir(parents=True)
        job.begin(REQUEST)
        job.finish(0)
        job.claim(CLAIM)
    (backend.jobs_path / "a-damaged" / "exit_code").write_text("nonsense")
    with pytest.raises(SpecError, match=r"1 jobs were cleared away, 1 cannot be.*a-damaged"):
        backend.reap(keep_s=0)
    assert [path.name for path in backend.jobs_path.iterdir()] == ["a-damaged"]


def test_a_folder_in_which_nothing_was_begun_goes_in_time(tmp_path: Path) -> None:
    """Its submitter was killed before it had written the request."""
    backend = ProcessBackend(settings.load({"SLIPWAY_HOME": str(tmp_path)}))
    (backend.jobs_path / "empty").mkdir(parents=True)
    assert backend.reap(keep_s=60) == 0
    assert backend.reap(keep_s=0) == 1
    assert list(backend.jobs_path.iterdir()) == []
