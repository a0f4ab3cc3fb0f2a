"""How a training fits itself to the nodes that are there, where they meet, and what a rank says that waits in vain."""

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from torch.distributed import TCPStore

from pipeline.contracts.finetune import Finetune
from pipeline.errors import SpecError, TransientError
from pipeline.settings import ROOT, Settings
from pipeline.training import launch
from pipeline.training.plan import TrainingPlan
from pipeline.training.watchdog import STALLED

HANGS = """
import threading
from pipeline.training.watchdog import Watchdog
with Watchdog(0.2, rank=3) as watchdog:
    watchdog.at(17)
    {action}
print("ended")
"""


def node_settings(tmp_path: Path, **changes: object) -> Settings:
    fields = {"home_path": tmp_path, "venvs_path": tmp_path, "store_uri": "file:///store", "nodes": 3, **changes}
    return Settings.model_validate(fields)


def settings(**changes: object) -> Finetune:
    return Finetune.model_validate({"nodes": 4, "batch_size": 32, **changes})


@pytest.mark.parametrize(
    ("nodes", "changes", "accumulation"),
    [
        (4, {}, 1),
        (3, {}, 2),
        (2, {}, 2),
        (1, {}, 4),
        (2, {"gradient_accumulation": 2}, 4),
        (3, {"batch_size": 4}, 1),
        (2, {"procs_per_node": 2, "parallelism": {"tensor": 2}}, 2),
    ],
)
def test_fewer_nodes_take_the_same_batch_in_micro_batches_that_are_no_larger(
    nodes: int, changes: dict[str, object], accumulation: int
) -> None:
    """Unless that would leave a rank without rows."""
    found = settings(**changes).on_nodes(nodes)
    assert (found.nodes, found.gradient_accumulation) == (nodes, accumulation)
    assert found.data_ranks * found.gradient_accumulation <= found.batch_size


def test_a_number_of_nodes_on_which_no_model_fits_is_refused() -> None:
    """With what would fit."""
    with pytest.raises(ValueError, match=r"min_nodes is 1, but 1 nodes × procs_per_node \(1\) .*raise procs_per_node"):
        settings(nodes=2, min_nodes=1, parallelism={"tensor": 2})
    assert settings(nodes=2, min_nodes=1, procs_per_node=2, parallelism={"tensor": 2}).min_nodes == 1


def test_agents_of_nodes_that_come_and_go_meet_at_a_store_of_nobodys(tmp_path: Path) -> None:
    """From the least number of nodes on, under the address that the store sees."""
    here = node_settings(tmp_path, rendezvous="127.0.0.1:29400", node_rank=0)
    command = launch.torchrun_command(
        here, tmp_path / "plan.json", settings(nodes=3, min_nodes=2, batch_size=30), job_id="j"
    )
    assert "--nnodes=2:3" in command
    assert "--rdzv-endpoint=127.0.0.1:29400" in command
    assert "--local-addr=127.0.0.1" in command
    (conf,) = [part for part in command if part.startswith("--rdzv-conf=")]
    assert "is_host=0" in conf


def test_without_min_nodes_the_first_node_hosts_and_all_are_needed(tmp_path: Path) -> None:
    """As many as the job has."""
    here = node_settings(tmp_path, rendezvous="127.0.0.1:29400", node_rank=0)
    command = launch.torchrun_command(here, tmp_path / "plan.json", settings(nodes=3, batch_size=30), job_id="j")
    assert "--nnodes=3" in command
    assert any("is_host=1" in part for part in command)
    with pytest.raises(SpecError, match="SLIPWAY_RENDEZVOUS is not set"):
        launch.torchrun_command(node_settings(tmp_path), tmp_path / "plan.json", settings(), job_id="j")


def test_a_meeting_place_that_is_nowhere_is_a_fault_that_may_pass() -> None:
    """Its name may only not be known yet."""
    with pytest.raises(TransientError, match=r"names the host nowhere\.invalid, which cannot be reached"):
        launch.address_towards("nowhere.invalid")
    assert launch.interface_of(launch.address_towards("127.0.0.1")) == "lo"


def test_the_meeting_place_keeps_what_agents_tell_it_until_it_is_ended() -> None:
    """By SIGTERM, with exit code 0."""
    port = launch.free_port()
    command = [sys.executable, "-m", "pipeline.training.rendezvous", "127.0.0.1", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"nodes meet at 127.0.0.1:{port}\n"
        TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False).set("generation", "3")
        assert TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False).get("generation") == b"3"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def run_watched(action: str, error_path: Path) -> "subprocess.CompletedProcess[str]":
    environment = {"PYTHONPATH": str(ROOT), "TORCHELASTIC_ERROR_FILE": str(error_path)}
    code = HANGS.format(action=action)
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_a_rank_that_waits_in_vain_says_where_and_ends(tmp_path: Path) -> None:
    """To people and to torchrun, which reads a file."""
    ended = run_watched("threading.Event().wait()", tmp_path / "error.json")
    assert ended.returncode == 1
    told = json.loads((tmp_path / "error.json").read_text())["message"]["message"]
    assert told in ended.stderr
    assert told.startswith("the training stands still: rank 3 has been at step 17 for more than 0.2 s")
    assert "waiting in wait (threading.py:" in told
    assert launch._is_consequence(told)


def test_a_watchdog_sleeps_while_something_with_limits_of_its_own_goes_on(tmp_path: Path) -> None:
    """Such as a save that waits for an upload."""
    ended = run_watched("with watchdog.asleep(): threading.Event().wait(1)", tmp_path / "error.json")
    assert (ended.returncode, ended.stdout) == (0, "ended\n"), ended.stderr


def test_a_rank_that_meets_nobody_says_so_and_ends() -> None:
    """Long before the libraries would."""
    code = "from pipeline.training.engine import join; join(0, 2, stall_timeout_s=0.5)"
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launch.free_port()), "RANK": "0"}
    environment = {"PYTHONPATH": str(ROOT), **place}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "rank 0 has been meeting the other ranks for more than 0.5 s" in ended.stderr


def test_a_node_waits_for_the_meeting_place_and_then_says_what_is_missing(tmp_path: Path) -> None:
    """Unless it is the one to open it."""
    port = launch.free_port()
    training = settings().model_copy(update={"join_timeout_s": 0.1})
    second = node_settings(tmp_path, rendezvous=f"127.0.0.1:{port}", node_rank=1)
    message = rf"nobody answered at 127\.0\.0\.1:{port} \(SLIPWAY_RENDEZVOUS\).* within 0\.1 s .*Connection refused"
    with pytest.raises(TransientError, match=message):
        launch.await_meeting_place(second, training)
    launch.await_meeting_place(second.model_copy(update={"node_rank": 0}), training)
    with socket.create_server(("127.0.0.1", port)):
        launch.await_meeting_place(second, training)


@pytest.mark.parametrize(
    ("told", "returncode", "kind", "message"),
    [
        (["Connection reset by peer"], 1, TransientError, "a rank or a node was killed more than 3 times .*reset by"),
        ([], -9, TransientError, r"torchrun was killed \(signal 9\), perhaps for want of memory"),
        (
            ["Connection reset by peer", f"{STALLED}: rank 1 has been at step 7", "Connection closed by peer"],
            *(1, TransientError, "after 3 restarts the training stands still: rank 1 has been at step 7"),
        ),
        (["Connection reset by peer", "ValueError: no"], 1, RuntimeError, "training failed: ValueError: no"),
    ],
    ids=["killed", "torchrun killed", "stalled", "bug"],
)
def test_a_training_that_was_given_up_says_what_its_ranks_died_of(
    told: list[str], returncode: int, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    """The cause, and not what followed from it."""
    for number, text in enumerate(told):
        (tmp_path / str(number)).mkdir()
        content = {"message": text, "extraInfo": {"timestamp": str(number)}}
        (tmp_path / str(number) / "error.json").write_text(json.dumps({"message": content}))
    plan = SimpleNamespace(settings=settings())
    error = launch._failure(cast(TrainingPlan, plan), tmp_path, returncode)
    assert type(error) is kind
    assert re.search(message, str(error))
