"""What the live view reads from a job's folder."""

import json
from pathlib import Path

from pipeline.commands import jobs
from pipeline.stack.layout import Layout


def write_job(home: Path, name: str, log: str, *, task: str = "finetune", run: str = "r1", at: float = 1.0) -> None:
    folder = home / "jobs" / name
    folder.mkdir(parents=True)
    labels = {"dag_id": "release", "run_id": run, "task_id": task, "map_index": "-1", "step": task}
    offset = log.find("==") + 2 if "==" in log else 0
    request = {"job_id": name, "labels": labels, "log_offset": offset, "submitted_at": at}
    (folder / "request.json").write_text(json.dumps(request))
    (folder / "log").write_text(log)


def test_the_newest_job_of_a_step_is_found(tmp_path: Path) -> None:
    """By the time that it was submitted."""
    write_job(tmp_path, "a", "old\n", at=1)
    write_job(tmp_path, "b", "new\n", at=2)
    found = jobs.job_of_step(Layout(tmp_path), "finetune")
    assert found is not None
    assert found.path.parent.name == "b"


def test_a_task_finds_its_own_runs_job(tmp_path: Path) -> None:
    """And not another run's."""
    write_job(tmp_path, "a", "mine\n", run="r1")
    write_job(tmp_path, "b", "other\n", run="r2", at=2)
    found = jobs.job_of_task(Layout(tmp_path), "r1", "finetune")
    assert found is not None
    assert found.progress() == "mine"
    assert jobs.job_of_task(Layout(tmp_path), "r3", "finetune") is None


def test_the_last_progress_line_is_shown(tmp_path: Path) -> None:
    """Lines after it do not hide it."""
    write_job(tmp_path, "a", "start\nprogress 1/9 11%\nprogress 2/9 22% loss=0.7\nsaved\n")
    assert jobs.find_jobs(Layout(tmp_path))[0].progress() == "2/9 22% loss=0.7"


def test_only_the_newest_attempt_is_read(tmp_path: Path) -> None:
    """The log holds all attempts; the request says where this one begins."""
    write_job(tmp_path, "a", "progress 9/9 100%\n==begin\n")
    assert jobs.find_jobs(Layout(tmp_path))[0].progress() == "begin"


def test_the_error_line_is_found_under_what_follows_it(tmp_path: Path) -> None:
    """It is what the user has to know."""
    write_job(tmp_path, "a", "work\nerror 65 DataError: row 3 is empty\nbye\n")
    assert jobs.find_jobs(Layout(tmp_path))[0].error() == "error 65 DataError: row 3 is empty"


def test_only_what_the_step_said_is_shown(tmp_path: Path) -> None:
    """Not libraries' lines, nor where the artifact went."""
    noise = [
        "W1120 22:32:23.854000 9472 triton.py:53] Tr",
        "[W1120 22:32:23.8 utils.cpp] x",
        "/venv/torch/x.py:3: UserWarning: something is deprecated",
        "  warnings.warn(",
        "INFO 11-20 22:50:00 [core.py:1] Initializing",
        "(EngineCore pid=9) INFO 11-20 22:50:00 loading",
        "2026-11-20T22:55:55.123 | reset | INFO - Compression lifecycle reset",
        "Calibrating:  50%|#####     | 1/2",
        "mlflow run e9ec in experiment 'x' at http://127.0.0.1:1",
        "published file:///store/x digest 12 (0.1 s)",
    ]
    write_job(tmp_path, "a", "\n".join(["25 % of the traffic: 20 requests, 0 errors", *noise]) + "\n")
    assert jobs.find_jobs(Layout(tmp_path))[0].progress() == "25 % of the traffic: 20 requests, 0 errors"
