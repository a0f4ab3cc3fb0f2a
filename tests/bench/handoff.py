"""Hand-off time between DAG tasks: our steps, as jobs that do nothing, against Airflow's empty tasks.

    python tests/bench/handoff.py

One Airflow (SQLite, LocalExecutor) runs both DAGs of five chained tasks, by turns. The figure is the time of a run
divided by its tasks: all that is spent around the work. Prints a JSON line.
"""

import json
import statistics
import sys
import tempfile
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

from pipeline import settings  # noqa: E402
from tests.integration.airflow_server import AirflowServer  # noqa: E402

TASKS = 5
ROUNDS = 5
DAGS = """
from datetime import UTC, datetime

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, chain

from pipeline.contracts.specs import RolloutSpec
from slipway_airflow.rollout_steps import PhaseOperator
from slipway_airflow.upstream import Work


def work(upstream):
    phase = RolloutSpec(name=upstream.context["ti"].task_id.replace("_", "-"), phase="plan", request_id=upstream.run_id)
    return Work(spec=phase, deadline_s=60, release="bench")


def nothing():
    return None


with DAG("ours", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)) as ours:
    chain(*(PhaseOperator(task_id=f"step_{index}", work=work) for index in range({tasks})))
with DAG("bare", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)) as bare:
    chain(*(PythonOperator(task_id=f"step_{index}", python_callable=nothing) for index in range({tasks})))
"""
STUB = """#!/bin/sh
exec {python} {stub} "$@"
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "stub").mkdir()
        (home / "dags").mkdir()
        (home / "dags" / "bench.py").write_text(DAGS.replace("{tasks}", str(TASKS)))
        python = home / "venvs" / "control" / "bin" / "python"
        python.parent.mkdir(parents=True)
        stub = ROOT / "tests" / "integration" / "stub_step.py"
        python.write_text(STUB.format(python=settings.load().python_path("control"), stub=stub))
        python.chmod(0o755)
        variables = {"SLIPWAY_HOME": str(home), "SLIPWAY_VENVS": str(home / "venvs")}
        with AirflowServer(home / "airflow", dags_path=home / "dags", variables=variables) as airflow:
            times = {"ours": [], "bare": []}
            for _ in range(ROUNDS + 1):
                for dag_id, measured in times.items():
                    measured.append(run_s(airflow, dag_id) / TASKS)
    ours, bare = (statistics.median(times[dag_id][1:]) for dag_id in ("ours", "bare"))
    line = {
        "name": "handoff_between_tasks",
        "value": round(ours, 3),
        "unit": "s",
        "baseline": "a bare Airflow DAG of empty Python tasks",
        "baseline_value": round(bare, 3),
        "ratio": round(ours / bare, 2),
    }
    print(json.dumps(line))


def run_s(airflow: AirflowServer, dag_id: str) -> float:
    run_id = airflow.trigger(dag_id)
    state = airflow.wait_for_run(dag_id, run_id)
    assert state == "success", f"{dag_id}: {airflow.task_states(dag_id, run_id)}"
    run = airflow.get(f"/dags/{dag_id}/dagRuns/{run_id}")
    began, ended = (datetime.fromisoformat(run[name]) for name in ("start_date", "end_date"))
    return (ended - began).total_seconds()


if __name__ == "__main__":
    main()
