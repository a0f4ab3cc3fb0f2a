"""The DAGs in a real Airflow, with a real MLflow: what starts a rollout, what ends it, and what kills do not.

The steps are stubs (stub_step.py), as real processes under the real backend: here the faults are forced.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline import settings
from pipeline.artifacts import read_manifest
from pipeline.contracts.base import ArtifactRef
from pipeline.contracts.study import RELEASE_RUN_PREFIX, StudyResult
from pipeline.settings import ROOT
from slipway_airflow.triggers.champion import FIRST_REPEAT_S, STATE
from tests.integration.airflow_server import AirflowServer
from tests.integration.mlflow_server import MlflowServer, running_mlflow

pytestmark = pytest.mark.integration

STUB = """#!/bin/sh
case "$3" in
rollout) exec {python} {folder}/stub_step.py "$@" ;;
plan | suggest | study) exec {python} "$@" ;;
*) exec {python} {folder}/stub_training.py "$@" ;;
esac
"""
SEARCH = """
name: {name}
dataset: {{uri: train.jsonl, eval_uri: eval.jsonl}}
base_model: {{init: {{}}}}
finetune: {{nodes: 1, epochs: 4, learning_rate: 0.01}}
search:
  space: {{finetune.learning_rate: {{choice: [0.01, 0.001, 0.9, 0.1]}}}}
  sampler: grid
  parallel: 2
  pruner: {{rungs: 2, factor: 2}}
"""


@pytest.fixture(scope="module")
def home_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "stub").mkdir()
    for environment in ("control", "model", "serve"):
        python = home / "venvs" / environment / "bin" / "python"
        python.parent.mkdir(parents=True)
        real = settings.load().python_path("control")
        python.write_text(STUB.format(python=real, folder=Path(__file__).parent))
        python.chmod(0o755)
    return home


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One for this module alone: the champions that other modules leave in theirs would be rolled out here too."""
    with running_mlflow(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="module")
def airflow(home_path: Path, mlflow_server: MlflowServer) -> Iterator[AirflowServer]:
    variables = {
        "SLIPWAY_HOME": str(home_path),
        "SLIPWAY_VENVS": str(home_path / "venvs"),
        "MLFLOW_TRACKING_URI": mlflow_server.uri,
    }
    with AirflowServer(home_path / "airflow", dags_path=ROOT / "dags", variables=variables) as server:
        yield server


class Fleet:
    """A registered model of one test, and what the stubs are told about it."""

    def __init__(self, name: str, home_path: Path, mlflow: MlflowServer) -> None:
        self.name = name
        self.folder = home_path / "stub"
        self.mlflow = mlflow
        self._ask("registered-models/create", name=name)
        run = self._ask("runs/create", experiment_id="0")["run"]["info"]
        for _ in range(2):
            source = f"{run['artifact_uri']}/bundle"
            self._ask("model-versions/create", name=name, source=source, run_id=run["run_id"])

    def set_champion(self, version: str) -> None:
        self._ask("registered-models/alias", name=self.name, alias="champion", version=version)

    def set_serving(self, version: str) -> None:
        self._ask("registered-models/alias", name=self.name, alias="serving", version=version)

    def tell(self, phase: str, **what: object) -> None:
        (self.folder / f"{self.name}-{phase}.json").write_text(json.dumps(what))

    def hold(self, phase: str) -> None:
        path = self._hold_path(phase)
        path.touch()
        self.tell(phase, hold=str(path))

    def let_go(self, phase: str) -> None:
        self._hold_path(phase).unlink()

    def runs_of(self, phase: str) -> int:
        path = self.folder / "runs"
        return path.read_text().split("\n").count(f"{self.name} {phase}") if path.exists() else 0

    def _hold_path(self, phase: str) -> Path:
        return self.folder / f"{self.name}-{phase}.hold"

    def _ask(self, path: str, **body: object) -> Any:
        answer = httpx.post(f"{self.mlflow.uri}/api/2.0/mlflow/{path}", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def fleet(request: pytest.FixtureRequest, home_path: Path, mlflow_server: MlflowServer) -> Fleet:
    return Fleet(f"model-{abs(hash(request.node.name)) % 10**8}", home_path, mlflow_server)


def by_hand(airflow: AirflowServer, fleet: Fleet) -> str:
    return airflow.trigger("rollout", {"name": fleet.name})


def watched_runs(airflow: AirflowServer, fleet: Fleet) -> list[str]:
    """The rollout runs that the watcher started for the model, oldest first."""
    # Airflow 3.3 answers 500 when asked for the events of a run that has not begun.
    runs = [run for run in airflow.runs("rollout") if run["run_type"] == "asset_triggered" and run["start_date"]]
    ids = [run["dag_run_id"] for run in runs]
    return [run_id for run_id in ids if fleet.name in event_text(airflow, run_id)]


def event_text(airflow: AirflowServer, run_id: str) -> str:
    return json.dumps(airflow.get(f"/dags/rollout/dagRuns/{run_id}/upstreamAssetEvents"))


def fired(airflow: AirflowServer, fleet: Fleet) -> tuple[str, float]:
    """What the watcher remembers of the model: the version, and how long until it is fired again."""
    [asset] = airflow.get("/assets", name_pattern="champions")["assets"]
    last = airflow.get(f"/assets/{asset['id']}/state-store/{STATE}")["value"][fleet.name]
    return last["version"], last["repeat_s"]


def follow_to_its_end(airflow: AirflowServer, fleet: Fleet, run_id: str, version: str) -> None:
    """`serving` follows while the run, whose `retire` is held, goes on: afterwards the watcher would fire again."""
    airflow.wait("it retires", lambda: airflow.task_states("rollout", run_id).get("retire") in ("running", "deferred"))
    fleet.set_serving(version)
    fleet.let_go("retire")
    assert airflow.wait_for_run("rollout", run_id) == "success"


def test_moving_the_champion_rolls_it_out_once(airflow: AirflowServer, fleet: Fleet) -> None:
    """Whoever sets the alias: it is fired at the first look, a run starts, promotes and retires; a triggerer that is
    killed and started while the rollout runs does not repeat it.
    """
    fleet.hold("plan")
    fleet.hold("retire")
    fleet.set_champion("1")
    airflow.wait("a rollout starts", lambda: len(watched_runs(airflow, fleet)) == 1)
    [run_id] = watched_runs(airflow, fleet)
    airflow.wait("it is in the triggerer", lambda: airflow.task_states("rollout", run_id).get("plan") == "deferred")
    airflow.kill("triggerer")
    airflow.start("triggerer")
    fleet.let_go("plan")
    follow_to_its_end(airflow, fleet, run_id, "1")
    states = airflow.task_states("rollout", run_id)
    assert states.pop("roll_back") == "skipped"
    assert set(states.values()) == {"success"}
    assert fired(airflow, fleet) == ("1", FIRST_REPEAT_S)
    assert watched_runs(airflow, fleet) == [run_id]

    fleet.hold("retire")
    fleet.set_champion("2")
    airflow.wait("the next champion's rollout starts", lambda: len(watched_runs(airflow, fleet)) == 2)
    second = watched_runs(airflow, fleet)[-1]
    follow_to_its_end(airflow, fleet, second, "2")
    assert fired(airflow, fleet) == ("2", FIRST_REPEAT_S)
    assert watched_runs(airflow, fleet) == [run_id, second]


def test_an_unhealthy_canary_is_rolled_back_and_the_run_fails(airflow: AirflowServer, fleet: Fleet) -> None:
    """promote is skipped, roll_back carries the reason, the old replicas are retired, and nobody sees a success."""
    fleet.tell("shift", outcome="unhealthy")
    run_id = by_hand(airflow, fleet)
    assert airflow.wait_for_run("rollout", run_id) == "failed"
    states = airflow.task_states("rollout", run_id)
    assert states == {
        "plan": "success",
        "start_canary": "success",
        "shift": "success",
        "promote": "skipped",
        "roll_back": "failed",
        "retire": "success",
    }


def test_a_canary_that_does_not_start_is_rolled_back(airflow: AirflowServer, fleet: Fleet) -> None:
    """A failed job is as good a reason as a bad finding; it is not tried again."""
    fleet.tell("start_canary", exit_code=65)
    run_id = by_hand(airflow, fleet)
    assert airflow.wait_for_run("rollout", run_id) == "failed"
    states = airflow.task_states("rollout", run_id)
    assert (states["start_canary"], states["shift"]) == ("failed", "upstream_failed")
    assert (states["promote"], states["roll_back"], states["retire"]) == ("upstream_failed", "failed", "success")
    assert fleet.runs_of("start_canary") == 1
    specs = [path.read_text() for path in fleet.folder.parent.glob("jobs/*/spec.json")]
    [spec] = [text for text in specs if fleet.name in text and '"roll_back"' in text]
    assert "StubError: start_canary was told to fail" in spec


def test_a_plan_that_fails_ends_the_rollout_that_it_may_have_numbered(airflow: AirflowServer, fleet: Fleet) -> None:
    """By a job of `roll_back`, after which the run counts as failed all the same."""
    fleet.tell("plan", exit_code=65)
    fleet.tell("roll_back", outcome="nothing_to_do")
    run_id = by_hand(airflow, fleet)
    assert airflow.wait_for_run("rollout", run_id) == "failed"
    states = airflow.task_states("rollout", run_id)
    assert (states["plan"], states["promote"], states["roll_back"]) == ("failed", "upstream_failed", "success")
    specs = [path.read_text() for path in fleet.folder.parent.glob("jobs/*/spec.json")]
    [spec] = [text for text in specs if fleet.name in text and '"roll_back"' in text]
    assert "plan failed: StubError: plan was told to fail" in spec


def test_nothing_to_do_skips_the_rest(airflow: AirflowServer, fleet: Fleet) -> None:
    """A repeated event costs one short job."""
    fleet.tell("plan", outcome="nothing_to_do")
    run_id = by_hand(airflow, fleet)
    assert airflow.wait_for_run("rollout", run_id) == "success"
    states = airflow.task_states("rollout", run_id)
    assert states.pop("plan") == "success"
    assert set(states.values()) == {"skipped"}


def test_a_job_survives_the_death_of_scheduler_and_triggerer(airflow: AirflowServer, fleet: Fleet) -> None:
    """kill -9 of both while the job runs: the task goes on with the same job, which runs once, its log complete."""
    fleet.hold("plan")
    run_id = by_hand(airflow, fleet)

    def state() -> str | None:
        return airflow.task_states("rollout", run_id).get("plan")

    airflow.wait("the task waits in the triggerer", lambda: state() == "deferred")
    for part in ("triggerer", "scheduler"):
        airflow.kill(part)
    for part in ("triggerer", "scheduler"):
        airflow.start(part)
    fleet.let_go("plan")
    assert airflow.wait_for_run("rollout", run_id) == "success"
    assert fleet.runs_of("plan") == 1
    log = airflow.log("rollout", run_id, "plan")
    assert "progress 2/3 line of plan" in log
    assert "done with plan" in log


def test_marking_a_waiting_task_as_failed_cancels_its_job(
    airflow: AirflowServer, fleet: Fleet, home_path: Path
) -> None:
    """The user's word reaches the process, even while the triggerer is away."""
    fleet.hold("plan")
    run_id = by_hand(airflow, fleet)
    airflow.wait("the task waits", lambda: airflow.task_states("rollout", run_id).get("plan") == "deferred")
    airflow.kill("triggerer")
    [job] = [path.parent for path in home_path.glob("jobs/*/spec.json") if fleet.name in path.read_text()]
    path = f"/dags/rollout/dagRuns/{run_id}/taskInstances/plan"
    airflow.api("PATCH", path, json={"new_state": "failed"}).raise_for_status()
    airflow.wait("the job is cancelled", lambda: (job / "exit_code").exists())
    assert (job / "exit_code").read_text() == "143\n"
    airflow.start("triggerer")


def test_a_transient_fault_is_retried_and_clearing_resumes_after_a_refusal(
    airflow: AirflowServer, fleet: Fleet
) -> None:
    """75 is tried again by itself; 65 is not, and after the cause is gone clearing the task goes on from there."""
    fleet.tell("plan", exit_code=75)
    run_id = by_hand(airflow, fleet)
    # A stub notes its run when it has read what it was told.
    airflow.wait("the first try runs", lambda: fleet.runs_of("plan") == 1)
    fleet.tell("plan", exit_code=65)
    assert airflow.wait_for_run("rollout", run_id) == "failed"
    assert fleet.runs_of("plan") == airflow.task("rollout", run_id, "plan")["try_number"] == 2
    fleet.tell("plan")
    body = {"dry_run": False, "task_ids": ["plan"], "dag_run_id": run_id, "include_downstream": True}
    airflow.api("POST", "/dags/rollout/clearTaskInstances", json=body).raise_for_status()
    assert airflow.wait_for_run("rollout", run_id) == "success"
    assert fleet.runs_of("plan") == 3


def test_a_search_prunes_outlasts_a_failed_trial_and_releases_the_best(
    airflow: AirflowServer, home_path: Path, mlflow_server: MlflowServer
) -> None:
    """Two rounds of two trials, with the triggerer killed while trials wait in it: the recipe's own values win, one
    trial of each round is pruned or fails, and the release trains nothing again.
    """
    for name in ("train", "eval"):
        (home_path / f"{name}.jsonl").write_text(f"{name}\n")
    recipe = home_path / "searched.yaml"
    recipe.write_text(SEARCH.format(name="searched"))
    run_id = airflow.trigger("search", {"recipe": str(recipe)})

    def trials() -> dict[int, str | None]:
        tasks = airflow.get(f"/dags/search/dagRuns/{run_id}/taskInstances")["task_instances"]
        return {task["map_index"]: task["state"] for task in tasks if task["task_id"] == "trial"}

    airflow.wait("the second round waits", lambda: [trials().get(number) for number in (2, 3)] == ["deferred"] * 2)
    airflow.kill("triggerer")
    airflow.start("triggerer")
    assert airflow.wait_for_run("search", run_id) == "success"
    assert trials() == {0: "success", 1: "skipped", 2: "failed", 3: "skipped"}

    value = airflow.get(f"/dags/search/dagRuns/{run_id}/taskInstances/study/xcomEntries/return_value", stringify=False)
    study = StudyResult.model_validate(read_manifest(ArtifactRef.model_validate(value["value"])).result)
    assert (study.best, study.values) == (0, {"finetune.learning_rate": 0.01})
    assert [trial.state for trial in study.trials] == ["complete", "pruned", "failed", "pruned"]
    assert [trial.epochs for trial in study.trials] == [(2.0, 4.0), (2.0,), (), (2.0,)]
    assert "the loss became nan" in study.trials[2].reason
    found = mlflow_search(mlflow_server, "searched", "tags.`mlflow.runName` = 'trial 3'")
    assert [run["data"]["params"] for run in found] == [[{"key": "finetune.learning_rate", "value": "0.1"}]]

    trained = (home_path / "stub" / "runs").read_text().split("\n").count("finetune")
    release_id = f"{RELEASE_RUN_PREFIX}{run_id}"
    assert airflow.wait_for_run("release", release_id) == "failed", "the stubs cannot compress"
    states = airflow.task_states("release", release_id)
    assert (states["evaluate"], states["compress"]) == ("success", "failed")
    assert (home_path / "stub" / "runs").read_text().split("\n").count("finetune") == trained == 5


def mlflow_search(mlflow: MlflowServer, experiment: str, condition: str) -> list[dict[str, Any]]:
    """The runs of an experiment."""
    found = httpx.get(
        f"{mlflow.uri}/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": experiment}, timeout=60
    ).json()
    body = {"experiment_ids": [found["experiment"]["experiment_id"]], "filter": condition}
    answer = httpx.post(f"{mlflow.uri}/api/2.0/mlflow/runs/search", json=body, timeout=60)
    runs: list[dict[str, Any]] = answer.raise_for_status().json().get("runs", [])
    return runs


@pytest.mark.parametrize(
    "conf",
    [
        {"recipe": "no such recipe"},
        {"dataset_uri": "rows.csv"},
        {"overrides": {"finetune.epoch": 1}},
        {"overrides": {"finetune.epochs": -1}},
        {"overrides": []},
    ],
)
def test_the_form_refuses_a_bad_value(airflow: AirflowServer, conf: dict[str, object]) -> None:
    """HTTP 400, and no run."""
    answer = airflow.api("POST", "/dags/release/dagRuns", json={"logical_date": None, "conf": conf})
    assert answer.status_code == 400
    assert [run for run in airflow.runs("release") if not run["dag_run_id"].startswith(RELEASE_RUN_PREFIX)] == []
