"""Whole releases on a whole stack: a small one, another version, the registry's own way in, and back.

The tests of this file build on each other, in their order.
"""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from clients import VERSION_HEADER, ask, constant_clients
from releases import MODEL, Rows, release, serving, status, wait_until
from running_stack import RunningStack

from pipeline.fleet.views import read_fleet
from pipeline.stack import processes

pytestmark = [pytest.mark.e2e, pytest.mark.needs("data"), pytest.mark.timeout(1200)]


def test_a_recipe_that_cannot_work_is_refused_before_anything_starts(stack: RunningStack) -> None:
    """The command says which field, its value and what is allowed."""
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
    before, trained = serving(stack), trainings(stack)
    summary = release(stack, slice_of_banking77, tmp_path / "summary.json")
    assert (summary["version"], serving(stack)) == (before, before)
    assert trainings(stack) == trained


def test_a_release_survives_kills_and_its_rollout_fails_no_client(
    stack: RunningStack, slice_of_banking77: Rows, tmp_path: Path
) -> None:
    """kill -9 of a training rank, the scheduler, the triggerer and MLflow on the way to the next version."""
    before = serving(stack)
    changes = {"finetune.epochs": 6, "compress.ladder": "[none]"}
    with (
        ThreadPoolExecutor(1) as pool,
        constant_clients(stack.gateway_url, stack.credentials.api_key, MODEL, pause_s=0.5) as load,
    ):
        going = pool.submit(release, stack, slice_of_banking77, tmp_path / "summary.json", **changes)
        kept = stack.home_path / "store" / "checkpoints"
        wait_until(lambda: any(kept.glob("*/step-*/complete")) or going.done(), "a checkpoint")
        assert not going.done(), going.result()
        os.kill(training_ranks(stack)[0], signal.SIGKILL)
        for name in ("airflow-scheduler", "airflow-triggerer", "mlflow"):
            os.kill(pid_of(stack, name), signal.SIGKILL)
        version = going.result()["version"]
    assert version != before
    assert serving(stack) == version
    assert load.failures == []
    assert load.answers.keys() == {before, version}


def test_rolling_back_to_warm_replicas_takes_a_weight_change(stack: RunningStack) -> None:
    """No replica starts and no client notices; the registry says the same afterwards."""
    now, warm = str(serving(stack)), str(replaced(stack))
    before = replicas(stack)
    with constant_clients(stack.gateway_url, stack.credentials.api_key, MODEL) as load:
        wait_until(lambda: load.answers[now] > 5, "answers of the version that serves")
        done = stack.slipway("rollback", MODEL)
        assert done.returncode == 0, done.stdout + done.stderr
        wait_until(lambda: load.answers[warm] > 5, "answers of the version before")
    assert load.failures == []
    assert status(stack)["champion"]["version"] == warm
    assert replicas(stack).items() <= before.items()


def test_setting_the_alias_in_mlflow_is_enough(stack: RunningStack) -> None:
    """The fleet follows the registry's own API, without a failed request and without anything else being done."""
    wanted = str(replaced(stack))
    with constant_clients(stack.gateway_url, stack.credentials.api_key, MODEL) as load:
        moved = httpx.post(
            f"{stack.mlflow_url}/api/2.0/mlflow/registered-models/alias",
            json={"name": MODEL, "alias": "champion", "version": wanted},
            timeout=60,
        )
        assert moved.status_code == 200, moved.text
        wait_until(lambda: serving(stack) == wanted, f"version {wanted} serves")
        seen = load.answers.total()
        wait_until(lambda: load.answers.total() > seen + 10, "answers afterwards")
    assert load.failures == []
    assert ask(stack.gateway_url, stack.credentials.api_key, MODEL).headers[VERSION_HEADER] == wanted


def test_a_killed_replica_and_a_killed_gateway_come_back(stack: RunningStack) -> None:
    """A replica's death is hidden by the other; Envoy is back with the same configuration."""
    version = str(serving(stack))
    pid = next(pid for name, pid in replicas(stack).items() if name.startswith(f"replica-{MODEL}-v{version}-"))
    with constant_clients(stack.gateway_url, stack.credentials.api_key, MODEL) as load:
        wait_until(lambda: load.answers[version] > 5, "answers")
        os.kill(pid, signal.SIGKILL)
        seen = load.answers[version]
        wait_until(lambda: load.answers[version] > seen + 50, "answers after the kill")
    assert load.failures == []
    os.kill(pid_of(stack, "gateway"), signal.SIGKILL)
    wait_until(lambda: answers(stack), "the gateway answers again")
    assert ask(stack.gateway_url, stack.credentials.api_key, MODEL).headers[VERSION_HEADER] == version


def pid_of(stack: RunningStack, program: str) -> int:
    state = stack.supervisor.state(program)
    assert state is not None
    assert state.pid
    return state.pid


def replicas(stack: RunningStack) -> dict[str, int]:
    """Name to pid."""
    states = stack.supervisor.states()
    return {state.name: state.pid for state in states if state.pid and state.name.startswith("replica-")}


def replaced(stack: RunningStack) -> str | None:
    """The version that served before, whose replicas are still warm."""
    previous = read_fleet(stack.home_path)[MODEL].previous
    return previous.version if previous else None


def trainings(stack: RunningStack) -> dict[Path, int]:
    """The artifacts of all trainings, and when each was finished."""
    manifests = (stack.home_path / "store" / "finetune").glob("*/manifest.json")
    return {path: path.stat().st_mtime_ns for path in manifests}


def answers(stack: RunningStack) -> bool:
    try:
        return ask(stack.gateway_url, stack.credentials.api_key, MODEL).status_code == 200
    except httpx.HTTPError:
        return False


def training_ranks(stack: RunningStack) -> list[int]:
    """The pids of the training that runs."""
    found = []
    for process in processes.owned(stack.layout):
        with suppress(psutil.NoSuchProcess):
            command = process.cmdline()
            if "pipeline.training.worker" in command and "torch.distributed.run" not in command:
                found.append(process.pid)
    return found
