"""The MLflow run of a step, against a real MLflow server."""

import multiprocessing
import os
import signal
import subprocess
import textwrap
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline import settings
from pipeline.errors import TransientError
from pipeline.job import Job
from pipeline.registry import connection
from pipeline.registry.runs import KEY_TAG, MlflowRun, step_run
from pipeline.settings import ROOT
from tests.integration.finished_release import FinishedRelease
from tests.integration.mlflow_server import MlflowServer, free_port

pytestmark = pytest.mark.integration


def job(release: str | None, key: str = "a" * 64) -> Job:
    """A job whose settings are the environment's."""
    loaded = settings.load().model_copy(update={"release": release})
    return Job(step="finetune", key=key, out_uri=f"{loaded.store_uri}/finetune/{key}", settings=loaded)


def runs_of(server: MlflowServer, release: str) -> list:
    client = MlflowClient(server.uri, server.uri)
    return list(client.search_runs([client.get_experiment_by_name(release).experiment_id]))


def test_a_step_logs_params_metrics_artifacts_and_tags(
    finished_release: FinishedRelease, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    """In the experiment of its release; the run ends FINISHED and its id is among the job's figures."""
    work, note = job(finished_release.recipe.name), tmp_path / "note.txt"
    note.write_text("seen")
    with step_run(work) as run:
        run.log_params({f"p{number}": number for number in range(150)})
        run.log_metrics({"loss": 0.5}, step=1)
        run.log_artifact(note, "notes")
        run.set_tags({"colour": "blue"})
    (found,) = runs_of(mlflow_server, finished_release.recipe.name)
    assert found.info.run_id == work.figures["mlflow_run_id"]
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {"loss": 0.5}
    assert len(found.data.params) == 150
    assert found.data.tags["colour"] == "blue"
    assert found.data.tags[KEY_TAG] == work.key


def _fail(release: str) -> None:
    with step_run(job(release)) as run:
        run.log_params({"rate": 1})
        raise RuntimeError


def test_a_failed_step_leaves_a_failed_run_that_the_retry_continues(
    finished_release: FinishedRelease, mlflow_server: MlflowServer
) -> None:
    """The retry may log its parameters again, and the run ends FINISHED."""
    release = finished_release.recipe.name
    with pytest.raises(RuntimeError):
        _fail(release)
    (failed,) = runs_of(mlflow_server, release)
    assert failed.info.status == "FAILED"
    with step_run(job(release)) as run:
        run.log_params({"rate": 1, "other": 2})
    (done,) = runs_of(mlflow_server, release)
    assert (done.info.run_id, done.info.status) == (failed.info.run_id, "FINISHED")
    assert done.data.params == {"rate": "1", "other": "2"}


@pytest.mark.parametrize("environment", ["control", "model"])
def test_a_step_that_is_killed_is_continued_in_the_same_run(
    environment: str, finished_release: FinishedRelease, mlflow_server: MlflowServer
) -> None:
    """kill -9 in the middle of a step, in the environment with all of MLflow and in the one with its client only."""
    script = textwrap.dedent("""
        import time
        from pipeline import settings
        from pipeline.job import Job
        from pipeline.registry.runs import step_run
        loaded = settings.load()
        job = Job(step="finetune", key="a" * 64, out_uri="file:///none", settings=loaded)
        with step_run(job) as run:
            run.log_metrics({"loss": 0.5})
            job.say("logged")
            time.sleep(600)
    """)
    python = settings.load().python_path(environment)
    child = subprocess.Popen([python, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with child:
        assert child.stdout is not None
        assert any(line == "logged\n" for line in child.stdout)
        child.kill()
    (killed,) = runs_of(mlflow_server, finished_release.recipe.name)
    assert killed.info.status == "RUNNING"
    with step_run(job(finished_release.recipe.name)) as run:
        assert run.run_id == killed.info.run_id
    (done,) = runs_of(mlflow_server, finished_release.recipe.name)
    assert done.info.status == "FINISHED"


def test_a_server_that_restarts_delays_the_step_only(
    finished_release: FinishedRelease, mlflow_server: MlflowServer
) -> None:
    """MLflow killed in the middle of a step and back some seconds later: nothing logged is lost."""
    restart = threading.Thread(target=lambda: (time.sleep(2), mlflow_server.start()))
    with step_run(job(finished_release.recipe.name)) as run:
        run.log_metrics({"loss": 0.9}, step=1)
        mlflow_server.stop()
        restart.start()
        run.log_metrics({"loss": 0.5}, step=2)
    restart.join()
    mlflow_server.wait_until_ready()
    (found,) = runs_of(mlflow_server, finished_release.recipe.name)
    client = MlflowClient(mlflow_server.uri, mlflow_server.uri)
    assert [point.value for point in client.get_metric_history(found.info.run_id, "loss")] == [0.9, 0.5]
    assert found.info.status == "FINISHED"


def test_a_server_that_stays_away_is_a_transient_fault_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says where MLflow was looked for, and what to do."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with (
        pytest.raises(TransientError, match=r"MLflow at http://127\.0\.0\.1:\d+ does not answer.*slipway status"),
        step_run(job("anything")),
    ):
        pass


def test_our_retries_last_about_two_minutes() -> None:
    """With the back-off of urllib3: none before the first retry, then 2, 4, 8 … seconds."""
    assert 90 <= sum(2**number for number in range(1, connection.HTTP_RETRIES)) <= 150


def _run_id(uri: str, home: str, release: str) -> str | None:
    os.environ.update(MLFLOW_TRACKING_URI=uri, SLIPWAY_HOME=home)
    with step_run(job(release)) as run:
        return run.run_id


def test_two_processes_that_start_at_once_share_the_experiment_and_the_run(
    finished_release: FinishedRelease, mlflow_server: MlflowServer
) -> None:
    """Whoever creates them first."""
    home, release = str(finished_release.settings.home_path), finished_release.recipe.name
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        ids = pool.starmap(_run_id, [(mlflow_server.uri, home, release)] * 2, chunksize=1)
    assert len(set(ids)) == 1
    assert [run.info.run_id for run in runs_of(mlflow_server, release)] == ids[:1]


def test_a_lost_answer_leaves_no_second_run(
    finished_release: FinishedRelease, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that the server carried out, but whose answer was lost, is sent twice; one run remains."""
    create = MlflowClient.create_run

    def twice(*arguments: object, **named: object) -> object:
        create(*arguments, **named)  # type: ignore[arg-type]
        return create(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowClient, "create_run", twice)
    with step_run(job(finished_release.recipe.name)):
        pass
    assert len(runs_of(mlflow_server, finished_release.recipe.name)) == 1


def test_a_frozen_server_is_waited_for(finished_release: FinishedRelease, mlflow_server: MlflowServer) -> None:
    """A server that takes the connection and says nothing for a while."""
    with step_run(job(finished_release.recipe.name)) as run:
        mlflow_server.signal(signal.SIGSTOP)
        threading.Timer(3.0, mlflow_server.signal, [signal.SIGCONT]).start()
        run.log_metrics({"loss": 0.1})
        assert isinstance(run, MlflowRun)
