"""Who hears of a task's new state, and what becomes of its job."""

from types import SimpleNamespace

import pytest

from slipway_airflow import backends, listener
from slipway_airflow.backends.base import Claim

TASK = SimpleNamespace(dag_id="release", run_id="monday", task_id="finetune", map_index=-1)
CLAIM = Claim(holder="release/monday/finetune/-1", token="second")


class OneJob:
    """A backend with one job, claimed by TASK."""

    def __init__(self) -> None:
        self.cancelled: list[tuple[str, Claim]] = []

    def claims_of(self, holder: str) -> list[tuple[str, Claim]]:
        return [("finetune-1", CLAIM)] if holder == CLAIM.holder else []

    def cancel(self, job_id: str, claim: Claim) -> bool:
        self.cancelled.append((job_id, claim))
        return True


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> OneJob:
    made = OneJob()
    monkeypatch.setattr(backends, "open_backend", lambda settings: made)
    monkeypatch.setattr("threading.Thread.start", lambda thread: thread.run())
    return made


def test_a_users_word_lets_go_of_the_job(backend: OneJob) -> None:
    """The API server names no state before."""
    listener.on_task_instance_failed(previous_state=None, task_instance=TASK, error="set by hand")
    assert backend.cancelled == [("finetune-1", CLAIM)]


def test_another_tasks_job_goes_on(backend: OneJob) -> None:
    """Claims are told apart by the whole task instance."""
    other = SimpleNamespace(**{**vars(TASK), "run_id": "tuesday"})
    listener.on_task_instance_success(previous_state=None, task_instance=other)
    assert backend.cancelled == []


def test_a_task_that_fails_by_itself_keeps_its_job_for_the_retry(backend: OneJob) -> None:
    """As when its worker was killed."""
    listener.on_task_instance_failed(previous_state="running", task_instance=TASK, error="lost")
    assert backend.cancelled == []
