"""A step's logger where there is nothing to log to."""

from pathlib import Path

import pytest

from pipeline.job import Job
from pipeline.registry.runs import NoRun, step_run
from pipeline.settings import Settings


def job(tmp_path: Path, **settings: object) -> Job:
    loaded = Settings(home_path=tmp_path, venvs_path=tmp_path, store_uri=f"file://{tmp_path}/store", **settings)  # type: ignore[arg-type]
    return Job(step="finetune", key="a" * 64, out_uri="file:///none", settings=loaded)


def test_without_a_server_the_step_says_so_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and a logger that takes everything."""
    with step_run(job(tmp_path)) as run:
        run.log_params({"rate": 1})
        run.log_metrics({"loss": 0.5}, step=3)
        run.log_artifact(tmp_path)
        run.log_artifacts(tmp_path)
        run.set_tags({"colour": "blue"})
        assert run.run_id is None
    assert capsys.readouterr().out == "MLFLOW_TRACKING_URI is not set: this step logs nothing to MLflow\n"


def test_only_the_first_node_logs(tmp_path: Path) -> None:
    """The others reach no server, so none need be there."""
    second = job(tmp_path, tracking_uri="http://127.0.0.1:1", nodes=2, node_rank=1)
    with step_run(second) as run:
        assert isinstance(run, NoRun)
