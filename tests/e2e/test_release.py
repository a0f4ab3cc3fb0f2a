"""Whole releases on a whole stack: a small one, another version, the registry's own way in, and back.

The tests of this file build on each other, in their order.
"""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from clients import VERSION_HEADER, ask, constant_clients
from releases import LIMIT_S, MODEL, Rows, release, serving, status, wait_until
from running_stack import RunningStack

from pipeline.stack import processes

pytestmark = [pytest.mark.e2e, pytest.mark.needs("data"), pytest.mark.timeout(1200)]


def test_a_recipe_that_cannot_work_is_refused_before_anything_starts(stack: RunningStack) -> None:
    """By field, value and what is allowed; the command, the form and the API agree."""
    refused = stack.slipway("release", "banking77", "--set", "finetune.nodes=3")
    assert refused.returncode == 64
    assert "batch_size (32) must be divisible by nodes (3)" in refused.stderr
    unknown = stack.slipway("validate", "banking77", "--set", "finetune.epoch=3")
    assert unknown.returncode == 64
    assert "finetune.epoch" in unknown.stderr
    assert "epochs" in unknown.stderr


def test_a_release_ends_with_its_model_behind_the_gateway(stack: RunningStack, first_release: dict[str, Any]) -> None:
    """Every answer names its version, and nobody gets one without a key."""
    assert first_release["serving_version"] == "1"
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
    stack: RunningStack, slice_of_banking77: Rows, tmp_path: Path
) -> None:
    """Nothing is trained or registered anew, and the version that serves stays."""
    manifests = finetuned(stack)
    release(stack, slice_of_banking77, tmp_path / "summary.json")
    assert finetuned(stack) == manifests
    assert serving(stack) == "1"


def test_a_release_survives_kills_and_its_rollout_fails_no_client(
    stack: RunningStack, slice_of_banking77: Rows, tmp_path: Path
) -> None:
    """kill -9 of a training rank, the scheduler, the triggerer and MLflow on the way to version 2."""
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
        wait_until(lambda: any(checkpoints.glob("*/node-*/checkpoints/step-*")) or not going.is_alive(), "a checkpoint")
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


def finetuned(stack: RunningStack) -> dict[Path, int]:
    """The artifacts of all trainings, and when each was finished."""
    manifests = (stack.home_path / "store" / "finetune").glob("*/manifest.json")
    return {path: path.stat().st_mtime_ns for path in manifests}


def answers(stack: RunningStack) -> bool:
    try:
        return ask(stack.gateway_url, stack.credentials.api_key, MODEL).status_code == 200
    except httpx.HTTPError:
        return False


def training_rank(stack: RunningStack) -> int:
    """The pid of one rank of the training that runs."""
    return next(
        process.pid
        for process in processes.owned(stack.layout)
        if "pipeline.training.worker" in process.cmdline() and "torch.distributed.run" not in process.cmdline()
    )
