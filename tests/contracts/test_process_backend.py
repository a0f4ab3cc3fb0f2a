"""The process backend keeps the promises of every backend, with real processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.settings import ROOT
from slipway_airflow.backends.base import Backend, JobRequest, JobStatus
from slipway_airflow.backends.process import ProcessBackend
from tests.contracts.backend_conformance import BackendConformance, OpenBackend, finished, request, wait_for, whole_log

SUBMIT = """
import sys
from pipeline import settings
from slipway_airflow.backends.base import JobRequest
from slipway_airflow.backends.process import ProcessBackend
ProcessBackend(settings.load()).submit(JobRequest.model_validate_json(sys.stdin.read()))
"""


@pytest.fixture
def home_path(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def open_backend(home_path: Path) -> OpenBackend:
    def open_it() -> Backend:
        return ProcessBackend(settings.load({"SLIPWAY_HOME": str(home_path)}))

    return open_it


@pytest.fixture
def kill_runner(home_path: Path) -> Callable[[str], None]:
    def kill(job_id: str) -> None:
        os.kill(json.loads((home_path / "jobs" / job_id / "runner.json").read_text())["pid"], signal.SIGKILL)

    return kill


@pytest.fixture
def submit_elsewhere(home_path: Path) -> Callable[[JobRequest], None]:
    def submit(job: JobRequest) -> None:
        environment = {
            **os.environ,
            "SLIPWAY_HOME": str(home_path),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")]),
        }
        subprocess.run(
            [sys.executable, "-c", SUBMIT], input=job.model_dump_json(), env=environment, text=True, check=True
        )

    return submit


class TestProcessBackend(BackendConformance):
    """All of them."""

    def test_airflows_own_settings_stay_out_of_the_job(
        self, open_backend: OpenBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A step has no business with Airflow's database or keys."""
        monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://secret")
        job = request("import os; print([name for name in os.environ if 'AIRFLOW' in name])")
        open_backend().submit(job)
        finished(open_backend(), job.job_id)
        assert whole_log(open_backend(), job.job_id) == "[]\n"

    def test_a_reused_pid_is_not_mistaken_for_the_runner(
        self, open_backend: OpenBackend, home_path: Path, kill_runner: Callable[[str], None]
    ) -> None:
        """A job whose runner's pid belongs to somebody else now is lost, and cancelling it leaves that process be."""
        job = request("import time; time.sleep(600)")
        backend = open_backend()
        backend.submit(job)
        kill_runner(job.job_id)
        wait_for("the loss is noticed", lambda: backend.status(job.job_id).state == "lost")
        with subprocess.Popen(["sleep", "600"]) as bystander:
            record = home_path / "jobs" / job.job_id / "runner.json"
            record.write_text(json.dumps({"pid": bystander.pid, "started": 0}))
            assert backend.status(job.job_id).state == "lost"
            assert backend.cancel(job.job_id) is False
            assert bystander.poll() is None
            bystander.kill()

    def test_a_runner_that_is_terminated_from_outside_reports_a_transient_fault(
        self, open_backend: OpenBackend, home_path: Path
    ) -> None:
        """As when the machine shuts down: nobody asked to cancel the job, so it deserves another try."""
        job = request("import time; time.sleep(600)")
        backend = open_backend()
        backend.submit(job)
        os.kill(json.loads((home_path / "jobs" / job.job_id / "runner.json").read_text())["pid"], signal.SIGTERM)
        assert finished(backend, job.job_id).exit_code == 75

    def test_a_step_that_is_terminated_from_outside_reports_a_transient_fault(self, open_backend: OpenBackend) -> None:
        """Somebody, or a watch over the machine's memory, ended it by its pid: it deserves another try."""
        end_itself = "import os, signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); "
        job = request(end_itself + "os.kill(os.getpid(), signal.SIGTERM)")
        backend = open_backend()
        backend.submit(job)
        assert finished(backend, job.job_id) == JobStatus(state="failed", exit_code=75)
        assert "node 0 was ended from outside (SIGTERM)" in whole_log(backend, job.job_id)
