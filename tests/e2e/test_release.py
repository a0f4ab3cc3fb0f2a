"""Whole releases on a whole stack: a small one, another version, the registry's own way in, and back.

The tests of this file build on each other, in their order.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from clients import VERSION_HEADER, ask, constant_clients
from running_stack import RunningStack

from pipeline.fleet.state import read_fleet

pytestmark = [pytest.mark.e2e, pytest.mark.needs("data"), pytest.mark.timeout(1200)]

MODEL = "banking77"
TRAIN_ROWS, EVAL_ROWS = 1200, 150
LIMIT_S = 900.0


@pytest.fixture(scope="module")
def slice_of_banking77(real_data_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every eighth or so of the real rows: all intents are there."""
    folder = tmp_path_factory.mktemp("banking77")
    paths = {}
    for name, rows in (("train", TRAIN_ROWS), ("test", EVAL_ROWS)):
        lines = (real_data_path / f"banking77-{name}.jsonl").read_text().splitlines()
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("\n".join(lines[:: len(lines) // rows]) + "\n")
    return paths


def release(stack: RunningStack, rows: dict[str, Path], summary: Path, **overrides: object) -> dict[str, Any]:
    """A release with little training, to its end; its summary."""
    settings = {
        "dataset.uri": rows["train"],
        "dataset.eval_uri": rows["test"],
        "validation.min_rows": 1000,
        "validation.max_overlap_fraction": 0.02,
        "validation.min_distinct_answers": 70,
        "finetune.epochs": 1,
        "finetune.checkpoint_every_steps": 10,
        "gates.min_score": 0,
        "gates.champion_margin": 1,
        "rollout.step_s": 1,
        "rollout.keep_warm_s": 600,
        "compress.ladder": "[w8a8, none]",
        **overrides,
    }
    flags = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    done = stack.slipway("release", "banking77", *flags, "--json", str(summary), timeout_s=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(summary.read_text()))


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.5)


def status(stack: RunningStack) -> dict[str, Any]:
    return dict(json.loads(stack.slipway("status", "--json").stdout))


def serving(stack: RunningStack) -> str | None:
    model = read_fleet(stack.home_path).get(MODEL)
    return model.serving.version if model and model.serving else None


def test_a_recipe_that_cannot_work_is_refused_before_anything_starts(stack: RunningStack) -> None:
    """By field, value and what is allowed; the command, the form and the API agree."""
    refused = stack.slipway("release", "banking77", "--set", "finetune.nodes=3")
    assert refused.returncode == 64
    assert "batch_size (32) must be divisible by nodes (3)" in refused.stderr
    unknown = stack.slipway("validate", "banking77", "--set", "finetune.epoch=3")
    assert unknown.returncode == 64
    assert "finetune.epoch" in unknown.stderr
    assert "epochs" in unknown.stderr


def test_a_release_ends_with_its_model_behind_the_gateway(
    stack: RunningStack, slice_of_banking77: dict[str, Path], tmp_path: Path
) -> None:
    """Real rows, two training nodes, quantization, the registry, the rollout; every answer names its version."""
    release(stack, slice_of_banking77, tmp_path / "summary.json")
    now = status(stack)
    assert now["serving"]["name"] == MODEL
    assert now["serving"]["version"] == now["champion"]["version"] == "1"
    assert [replica["healthy"] for replica in now["replicas"]] == [True, True]
    answer = ask(now["gateway"], now["api_key"], MODEL)
    assert answer.status_code == 200
    assert answer.headers[VERSION_HEADER] == "1"
    assert answer.json()["choices"][0]["message"]["content"]
    assert ask(now["gateway"], "wrong", MODEL).status_code == 401
    assert ask(now["gateway"], now["api_key"], "no-such-model").status_code == 404


def test_the_same_release_again_reuses_what_is_finished(
    stack: RunningStack, slice_of_banking77: dict[str, Path], tmp_path: Path
) -> None:
    """Nothing is trained or registered anew, and the version that serves stays."""
    manifests = {path: path.stat().st_mtime_ns for path in (stack.home_path / "store").glob("finetune/*/manifest.json")}
    release(stack, slice_of_banking77, tmp_path / "summary.json")
    assert manifests == {
        path: path.stat().st_mtime_ns for path in (stack.home_path / "store").glob("finetune/*/*.json")
    }
    assert serving(stack) == "1"


def test_a_release_survives_kills_and_its_rollout_fails_no_client(
    stack: RunningStack, slice_of_banking77: dict[str, Path], tmp_path: Path
) -> None:
    """kill -9 of a training rank, the scheduler, the triggerer and MLflow on the way to version 2."""
    import threading

    failed: list[BaseException] = []

    def run() -> None:
        try:
            release(stack, slice_of_banking77, tmp_path / "summary.json", **{"finetune.seed": 1, "finetune.epochs": 2})
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failed.append(error)

    going = threading.Thread(target=run)
    with constant_clients(stack.gateway_url, stack.credentials.api_key, MODEL) as load:
        going.start()
        checkpoints = stack.home_path / "work" / "finetune"
        wait_until(lambda: any(checkpoints.glob("*/checkpoints/*")) or not going.is_alive(), "a checkpoint")
        os.kill(training_rank(stack), signal.SIGKILL)
        for name in ("airflow-scheduler", "airflow-triggerer", "mlflow"):
            state = stack.supervisor.state(name)
            assert state is not None
            assert state.pid
            os.kill(state.pid, signal.SIGKILL)
        going.join(LIMIT_S)
    assert not failed, failed
    assert serving(stack) == "2"
    assert load.failures == []
    assert load.answers.keys() == {"1", "2"}


def test_rolling_back_to_warm_replicas_takes_a_weight_change(stack: RunningStack) -> None:
    """No replica starts and no client notices; the registry says the same afterwards."""
    before = {state.name: state.pid for state in stack.supervisor.states() if state.name.startswith("replica-")}
    with constant_clients(stack.gateway_url, stack.credentials.api_key, MODEL) as load:
        wait_until(lambda: load.answers["2"] > 5, "answers of version 2")
        done = stack.slipway("rollback", MODEL)
        assert done.returncode == 0, done.stdout + done.stderr
        wait_until(lambda: load.answers["1"] > 5, "answers of version 1")
    assert load.failures == []
    assert status(stack)["champion"]["version"] == "1"
    after = {state.name: state.pid for state in stack.supervisor.states() if state.name.startswith("replica-")}
    assert after.keys() <= before.keys()
    assert all(before[name] == pid for name, pid in after.items())


def test_setting_the_alias_in_mlflow_is_enough(stack: RunningStack) -> None:
    """The fleet follows the registry's own API, without a failed request and without anything else being done."""
    with constant_clients(stack.gateway_url, stack.credentials.api_key, MODEL) as load:
        moved = httpx.post(
            f"{stack.mlflow_url}/api/2.0/mlflow/registered-models/alias",
            json={"name": MODEL, "alias": "champion", "version": "2"},
        )
        assert moved.status_code == 200, moved.text
        wait_until(lambda: serving(stack) == "2", "version 2 serving")
        wait_until(lambda: ask(stack.gateway_url, stack.credentials.api_key, MODEL).headers[VERSION_HEADER] == "2", "2")
    assert load.failures == []


def test_a_killed_replica_and_a_killed_gateway_come_back(stack: RunningStack) -> None:
    """A replica's death is hidden by the other; Envoy is back with the same configuration."""
    name = next(state for state in stack.supervisor.states() if state.name.startswith(f"replica-{MODEL}-v2"))
    assert name.pid
    with constant_clients(stack.gateway_url, stack.credentials.api_key, MODEL) as load:
        wait_until(lambda: load.answers["2"] > 5, "answers")
        os.kill(name.pid, signal.SIGKILL)
        seen = load.answers["2"]
        wait_until(lambda: load.answers["2"] > seen + 50, "answers after the kill")
    assert load.failures == []
    envoy = stack.supervisor.state("gateway")
    assert envoy is not None
    assert envoy.pid
    os.kill(envoy.pid, signal.SIGKILL)
    wait_until(lambda: answers(stack), "the gateway answers again")
    assert ask(stack.gateway_url, stack.credentials.api_key, MODEL).headers[VERSION_HEADER] == "2"


def answers(stack: RunningStack) -> bool:
    try:
        return ask(stack.gateway_url, stack.credentials.api_key, MODEL).status_code == 200
    except httpx.HTTPError:
        return False


def training_rank(stack: RunningStack) -> int:
    """The pid of one rank of the training that runs."""
    from pipeline.stack import processes

    return next(
        process.pid
        for process in processes.owned(stack.layout)
        if "pipeline.training.worker" in process.cmdline() and "torch.distributed.run" not in process.cmdline()
    )
