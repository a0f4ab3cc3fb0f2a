"""The other ways into a release: a person who decides, the form's API, the clock; and bytes that nobody released.

Comes after test_release.py, whose versions are there; see conftest.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from clients import VERSION_HEADER, ask, constant_clients
from releases import MODEL, Rows, flags, serving, status, wait_until
from running_stack import RunningStack

from pipeline.registry.models import Registry

pytestmark = [pytest.mark.e2e, pytest.mark.needs("data"), pytest.mark.timeout(1200)]


def task(airflow: httpx.Client, run_id: str, task_id: str) -> dict[str, Any]:
    return dict(airflow.get(f"/dags/release/dagRuns/{run_id}/taskInstances/{task_id}").json())


@pytest.mark.parametrize(
    "conf",
    [
        {"recipe": ""},
        {"dataset_uri": "ftp://somewhere/rows.csv"},
        {"overrides": {"finetune.epochs": "many"}},
        {"overrides": {"finetune.epoch": 3}},
        {"overrides": ["finetune.epochs"]},
    ],
)
def test_the_forms_api_refuses_bad_values(stack: RunningStack, conf: dict[str, object]) -> None:
    """With HTTP 400 that names the field, and nothing is started."""
    body = {"dag_run_id": "refused", "logical_date": None, "conf": conf}
    with stack.airflow() as airflow:
        refused = airflow.post("/dags/release/dagRuns", json=body)
        assert refused.status_code == 400, refused.text
        assert next(iter(conf)) in refused.text
        assert airflow.get("/dags/release/dagRuns/refused").status_code == 404


def test_values_that_do_not_fit_together_fail_at_plan_as_the_command_says_it(stack: RunningStack) -> None:
    """The form takes each of them by itself; the recipe as a whole is refused by the first step, and no other runs."""
    refused = stack.slipway("validate", "demo", "--set", "finetune.nodes=3")
    sentence = refused.stderr.splitlines()[-1].strip()
    assert "batch_size (32) must be divisible by nodes (3)" in sentence
    conf = {"recipe": "demo", "overrides": {"finetune.nodes": 3}}
    with stack.airflow() as airflow:
        taken = airflow.post("/dags/release/dagRuns", json={"dag_run_id": "misfit", "logical_date": None, "conf": conf})
        assert taken.status_code == 200, taken.text
        run = "/dags/release/dagRuns/misfit"
        wait_until(lambda: airflow.get(run).json()["state"] in ("success", "failed"), "the run's end", 240)
        states = {name: task(airflow, "misfit", name)["state"] for name in ("plan", "validate", "finetune")}
        assert states == {"plan": "failed", "validate": "upstream_failed", "finetune": "upstream_failed"}
        log = airflow.get(f"{run}/taskInstances/plan/logs/1", params={"full_content": True}).json()["content"]
    assert sentence in [line["event"].strip() for line in log]


def test_a_recipe_with_a_schedule_gets_a_dag_of_its_own(stack: RunningStack) -> None:
    """`up` is all it takes, and without the recipe the DAG's file is gone."""
    own = stack.home_path / "recipes" / "weekly.yaml"
    own.parent.mkdir(exist_ok=True)
    own.write_text(
        "name: weekly\n"
        'schedule: "0 3 * * 1"\n'
        "dataset: {generate: {kind: support-intents}}\n"
        "base_model: {init: {num_layers: 1}}\n"
        "finetune: {max_seq_len: 128}\n"
    )
    stack.up()
    generated = stack.layout.dags_path / "release_weekly.py"
    assert generated.exists()
    with stack.airflow() as airflow:
        wait_until(lambda: airflow.get("/dags/release_weekly/details").status_code == 200, "the DAG", 120)
        details = airflow.get("/dags/release_weekly/details").json()
        assert details["timetable_summary"] == "0 3 * * 1"
        assert details["params"]["recipe"]["value"] == str(own)
        assert airflow.get("/importErrors").json()["import_errors"] == []
    own.unlink()
    stack.up()
    assert not generated.exists()


def test_a_release_that_asks_waits_for_a_person(stack: RunningStack, slice_of_banking77: Rows) -> None:
    """Everything before is reused; the champion is moved by nobody until somebody approves."""
    before = status(stack)["champion"]["version"]
    started = stack.slipway("release", MODEL, *flags(slice_of_banking77, **{"promote.policy": "manual"}), "--no-wait")
    assert started.returncode == 0, started.stderr
    run_id = next(word for word in started.stdout.split() if word.startswith("cli__"))
    with stack.airflow() as airflow:
        wait_until(lambda: task(airflow, run_id, "approve")["state"] == "awaiting_input", "the question")
        assert status(stack)["champion"]["version"] == before
        question = f"/dags/release/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails"
        asked = airflow.get(question).json()
        assert asked["subject"].startswith(f"Promote {MODEL} version")
        assert "held-out rows" in asked["body"]
        version = asked["subject"].removesuffix("?").split()[-1]
        assert version != before
        answered = airflow.patch(question, json={"chosen_options": ["Approve"]})
        assert answered.status_code == 200, answered.text
        wait_until(lambda: task(airflow, run_id, "promote")["state"] == "success", "the promotion")
    assert status(stack)["champion"]["version"] == version
    wait_until(lambda: serving(stack) == version, "the rollout")
    assert Registry(stack.mlflow_url, stack.home_path).get(MODEL, version).tags["slipway.promoted_by"] == "admin"


def test_a_bundle_whose_bytes_were_changed_is_never_served(stack: RunningStack) -> None:
    """The version that serves keeps all clients, the registry is told why, and champion is put back."""
    before = serving(stack)
    assert before is not None
    registry = Registry(stack.mlflow_url, stack.home_path)
    clients = constant_clients(stack.gateway_url, stack.credentials.api_key, MODEL)
    with changed_bytes(registry.get(MODEL, "1").bundle.artifact.uri), clients as load:
        registry.set_alias(MODEL, "champion", "1")
        wait_until(lambda: registry.get(MODEL, "1").tags.get("slipway.rollout") == "failed", "the refusal")
        wait_until(lambda: registry.alias(MODEL, "champion") == before, "champion put back")
    assert load.failures == []
    assert load.answers.keys() == {before}
    assert serving(stack) == before
    assert "was altered" in registry.get(MODEL, "1").tags["slipway.rollout_reason"]
    assert ask(stack.gateway_url, stack.credentials.api_key, MODEL).headers[VERSION_HEADER] == before


@contextmanager
def changed_bytes(uri: str) -> Iterator[None]:
    """One byte of a model's weights is another, in a new file: replicas may have the old one open."""
    weights = next(Path(uri.removeprefix("file://")).rglob("*.safetensors"))
    kept = weights.with_suffix(".kept")
    weights.rename(kept)
    try:
        content = bytearray(kept.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        yield
    finally:
        kept.replace(weights)
