"""The DAG files: quick to parse, no input or output, and wired as the architecture says."""

import importlib
import importlib.util
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from airflow.sdk import DAG, TriggerRule
from airflow.sdk.exceptions import ParamValidationError

from pipeline.settings import ROOT
from slipway_airflow.release_dag import known_params, release_dag

DAG_FILES = sorted((ROOT / "dags").glob("*.py"))
MAX_LINES = 120
MAX_PARSE_S = 1.0

RELEASE_EDGES = {
    "plan": {"validate"},
    "validate": {"finetune"},
    "finetune": {"evaluate", "compress"},
    "evaluate": {"evaluate_compressed"},
    "compress": {"evaluate_compressed"},
    "evaluate_compressed": {"register"},
    "register": {"approve"},
    "approve": {"promote"},
    "promote": set(),
}
ROLLOUT_EDGES = {
    "plan": {"start_canary"},
    "start_canary": {"shift"},
    "shift": {"promote", "roll_back"},
    "promote": {"retire"},
    "roll_back": {"retire"},
    "retire": set(),
}
SEARCH_EDGES = {
    "plan": {"trials"},
    "trials": {"validate", "trial"},
    "validate": {"trial"},
    "trial": {"study"},
    "study": {"release"},
    "release": set(),
}


def parse(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"parsed_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def edges(dag: DAG) -> dict[str, set[str]]:
    return {task.task_id: set(task.downstream_task_ids) for task in dag.tasks}


@pytest.fixture(scope="module")
def release() -> DAG:
    return parse(ROOT / "dags" / "release.py").dag


@pytest.fixture(scope="module")
def rollout() -> DAG:
    return parse(ROOT / "dags" / "rollout.py").dag


@pytest.fixture(scope="module")
def search() -> DAG:
    return parse(ROOT / "dags" / "search.py").dag


def test_there_is_one_dag_a_file_named_like_it() -> None:
    """So that a reader finds a DAG by its id."""
    assert [path.stem for path in DAG_FILES] == ["maintenance", "release", "rollout", "search"]
    for path in DAG_FILES:
        dags = [value for value in vars(parse(path)).values() if isinstance(value, DAG)]
        assert [dag.dag_id for dag in dags] == [path.stem]
        assert len(path.read_text().splitlines()) <= MAX_LINES


def test_the_release_is_wired_as_the_flow_says(release: DAG) -> None:
    """Every gate has an edge that depends on it."""
    assert edges(release) == RELEASE_EDGES


def test_the_rollout_is_wired_as_the_flow_says(rollout: DAG) -> None:
    """roll_back looks at failures too; retire is a teardown, which cannot turn a failed run into a success."""
    assert edges(rollout) == ROLLOUT_EDGES
    assert rollout.get_task("roll_back").trigger_rule == TriggerRule.ALL_DONE
    assert rollout.get_task("retire").is_teardown


def test_a_search_is_wired_as_the_flow_says(search: DAG) -> None:
    """One instance of `trial` for each of the listed trials; the study comes whatever became of them, the release only
    after the study."""
    assert edges(search) == SEARCH_EDGES
    trial = search.get_task("trial")
    assert trial.is_mapped
    assert trial.retries == search.get_task("study").retries == 5
    assert search.get_task("study").trigger_rule == TriggerRule.ALL_DONE
    assert search.get_task("release").trigger_rule == TriggerRule.ALL_SUCCESS


@pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.stem)
def test_a_dag_file_parses_in_under_a_second_once_airflow_is_loaded(path: Path) -> None:
    """Of processor time, in a fresh interpreter: everything that it imports counts, but Airflow itself."""
    code = f"""
import sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "plugins")!r}, {str(path.parent)!r}]
import airflow.sdk, airflow.triggers.base
import airflow.providers.standard.operators.hitl, airflow.providers.standard.operators.trigger_dagrun
from airflow.sdk import DAG, Asset, AssetWatcher, BaseOperator, Param, TriggerRule
began = time.process_time()
import {path.stem}
print(time.process_time() - began)
heavy = {{"mlflow", "torch", "boto3", "great_expectations", "vllm", "pandas"}} & sys.modules.keys()
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < MAX_PARSE_S


@pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.stem)
def test_a_dag_file_does_no_input_or_output_while_it_is_parsed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its modules loaded, it opens no file and no connection."""
    parse(path)
    source = compile(path.read_text(), str(path), "exec")

    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"input or output while parsing: {arguments[:1]}")

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    began = time.process_time()
    exec(source, {"__name__": "parsed", "__file__": str(path)})
    assert time.process_time() - began < MAX_PARSE_S


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("recipe", ""),
        ("recipe", "two words"),
        ("recipe", None),
        ("dataset_uri", "rows.csv"),
        ("dataset_uri", "rows.jsonl"),
        ("eval_uri", "http://host/rows.jsonl"),
        ("overrides", []),
        ("overrides", {"finetune.epoch": 2}),
        ("overrides", {"finetune.epochs": 0}),
        ("overrides", {"promote.policy": "perhaps"}),
        ("overrides", {"compress.ladder": ["w2a2"]}),
    ],
)
def test_the_form_refuses_a_value_that_no_release_could_use(release: DAG, name: str, value: object) -> None:
    """Airflow answers HTTP 400 where a parameter does not validate."""
    with pytest.raises(ParamValidationError):
        release.params.get_param(name).resolve(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("recipe", "banking77"),
        ("recipe", "infra/recipes/demo.yaml"),
        ("recipe", "/home/me/my recipe.yml"),
        ("dataset_uri", None),
        ("dataset_uri", "/data/rows.jsonl"),
        ("dataset_uri", "file:///data/rows.parquet"),
        ("eval_uri", "s3://bucket/rows.jsonl"),
        ("overrides", {"finetune.epochs": 2, "promote.policy": "manual", "dataset.generate": None}),
        ("overrides", {"validation.labels": ["a", "b"], "gates.max_loss": None}),
    ],
)
def test_the_form_takes_what_a_release_can_use(release: DAG, name: str, value: object) -> None:
    """Names, paths, and any field of a recipe with an allowed value."""
    assert release.params.get_param(name).resolve(value) == value


def test_the_form_takes_another_search_space(search: DAG) -> None:
    """And refuses one that no search could use."""
    overrides = search.params.get_param("overrides")
    space = {"search.space": {"finetune.epochs": {"choice": [1, 2]}}, "search.trials": 4, "search.pruner": None}
    assert overrides.resolve(space) == space
    for wrong in ({"search.space": {"finetune.epochs": {"step": "wide"}}}, {"search.trials": 1}, {"search.x": 1}):
        with pytest.raises(ParamValidationError):
            overrides.resolve(wrong)


def test_every_field_of_the_forms_explains_itself(release: DAG, rollout: DAG, search: DAG) -> None:
    """A title and a description each."""
    for dag in (release, rollout, search):
        for name in dag.params:
            param = dag.params.get_param(name)
            assert param.description, name
            assert param.schema["title"], name


def test_an_unknown_field_in_a_runs_conf_is_refused() -> None:
    """Airflow itself would ignore it."""
    with pytest.raises(Exception, match=r"unknown fields \['recipes'\]"):
        known_params({"recipes": "demo"})


def test_a_scheduled_recipe_gets_the_same_dag_under_its_own_name() -> None:
    """With the schedule, its recipe as the default, and one run at a time."""
    dag = release_dag(dag_id="release_nightly", schedule="0 3 * * *", recipe="/recipes/nightly.yaml")
    assert edges(dag) == RELEASE_EDGES
    assert dag.params["recipe"] == "/recipes/nightly.yaml"
    assert dag.max_active_runs == 1
    assert not dag.catchup
