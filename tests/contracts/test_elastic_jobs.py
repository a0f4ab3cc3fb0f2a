"""Jobs that go on with fewer nodes, as processes: who is started again, how often, and when it is over."""

from pathlib import Path

import pytest

from pipeline import settings
from pipeline.errors import SpecError
from slipway_airflow.backends.base import JobStatus
from slipway_airflow.backends.docker import DockerBackend
from slipway_airflow.backends.process import ProcessBackend
from slipway_airflow.backends.process_runner import MAX_RETURNS
from tests.contracts.backend_conformance import finished, processes_with, request, whole_log

NODE = """
import os, sys, time
from pathlib import Path
folder, rank = Path(sys.argv[2]), os.environ["SLIPWAY_NODE_RANK"]
assert os.environ["SLIPWAY_RENDEZVOUS"].startswith("127.0.0.1:")
(folder / f"{rank}.{os.getpid()}").touch()
starts = len(list(folder.glob(f"{rank}.*")))
print("node", rank, "start", starts, flush=True)
def others_are_there():
    return len({path.name.split(".")[0] for path in folder.glob("*.*")}) == int(os.environ["SLIPWAY_NODES"])
"""
"""Every start leaves a file, so that a node knows how often it has been started."""


@pytest.fixture
def backend(tmp_path: Path) -> ProcessBackend:
    return ProcessBackend(settings.load({"SLIPWAY_HOME": str(tmp_path / "home")}))


def run(
    backend: ProcessBackend, folder: Path, code: str, *, nodes: int = 2, min_nodes: int = 1
) -> tuple[JobStatus, str]:
    """How a job of nodes that run `code` ends, and its log."""
    folder.mkdir()
    job = request(NODE + code, nodes=nodes, min_nodes=min_nodes)
    job = job.model_copy(update={"arguments": (*job.arguments, str(folder))})
    backend.submit(job)
    status = finished(backend, job.job_id)
    assert processes_with(str(folder)) == []
    return status, whole_log(backend, job.job_id)


def test_a_node_that_dies_is_started_again_while_the_others_go_on(backend: ProcessBackend, tmp_path: Path) -> None:
    """And the job succeeds with the same processes of those others."""
    code = """
if rank == "1" and starts == 1:
    os.kill(os.getpid(), 9)
while len(list(folder.glob("1.*"))) < 2:
    time.sleep(0.02)
"""
    status, log = run(backend, tmp_path / "starts", code)
    assert status == JobStatus(state="succeeded", exit_code=0), log
    assert "node 1 was lost (SIGKILL): starting it again, 1 of 3" in log
    assert len(list((tmp_path / "starts").glob("0.*"))) == 1


def test_the_job_goes_on_without_a_node_that_keeps_dying(backend: ProcessBackend, tmp_path: Path) -> None:
    """As long as enough are left."""
    code = """
if rank == "1":
    sys.exit(75)
while "the job goes on" not in Path(sys.argv[1]).with_name("log").read_text():
    time.sleep(0.02)
"""
    status, log = run(backend, tmp_path / "starts", code)
    assert status == JobStatus(state="succeeded", exit_code=0), log
    assert "node 1 was lost (exit code 75) once too often: the job goes on with 1 nodes" in log
    assert len(list((tmp_path / "starts").glob("1.*"))) == 1 + MAX_RETURNS


def test_too_few_nodes_are_the_end_of_the_job(backend: ProcessBackend, tmp_path: Path) -> None:
    """With an exit code that lets it be tried again."""
    status, log = run(backend, tmp_path / "starts", "sys.exit(75) if rank == '1' else time.sleep(600)", min_nodes=2)
    assert status == JobStatus(state="failed", exit_code=75), log
    assert log.count("starting it again") == MAX_RETURNS


@pytest.mark.parametrize("code", [64, 65, 1])
def test_a_fault_that_would_only_come_again_ends_the_job_at_once(
    code: int, backend: ProcessBackend, tmp_path: Path
) -> None:
    """Whatever the number of nodes that are left."""
    status, log = run(backend, tmp_path / "starts", f"sys.exit({code}) if rank == '1' else time.sleep(600)")
    assert status == JobStatus(state="failed", exit_code=code), log
    assert "starting it again" not in log


def test_a_node_that_dies_when_others_have_ended_is_not_gone_on_without(
    backend: ProcessBackend, tmp_path: Path
) -> None:
    """It may be the one that had to publish."""
    code = """
while not others_are_there():
    time.sleep(0.02)
if rank == "1":
    (other,) = folder.glob("0.*")
    while Path("/proc", other.suffix[1:]).exists():  # until the runner has its exit code
        time.sleep(0.02)
    os.kill(os.getpid(), 9)
"""
    status, log = run(backend, tmp_path / "starts", code)
    assert status == JobStatus(state="failed", exit_code=75), log


def test_containers_refuse_to_go_on_with_fewer_nodes(tmp_path: Path) -> None:
    """Before anything is started, with what to do instead."""
    docker = DockerBackend(settings.load({"SLIPWAY_HOME": str(tmp_path / "home")}))
    with pytest.raises(SpecError, match=r"finetune\.min_nodes is 1, but containers .*leave min_nodes out"):
        docker.submit(request("pass", nodes=2, min_nodes=1))
