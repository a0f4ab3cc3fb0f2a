"""A training whose nodes come and go, under the process backend: it ends with the losses that nobody disturbed."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from training_jobs import TrainingJob, kill, make_spec, processes_with, publish_dataset, rows, wait_until

from pipeline.contracts.specs import FinetuneSpec
from slipway_airflow.backends.base import JobStatus

pytestmark = pytest.mark.integration

AGREE = 1e-5
"""Between losses, in nats."""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> FinetuneSpec:
    """Two nodes, of which one suffices; long enough to be disturbed."""
    dataset = publish_dataset(tmp_path_factory.mktemp("data") / "store", rows())
    return make_spec(dataset, epochs=25, checkpoint_every_steps=20, min_nodes=1, stall_timeout_s=30)


@pytest.fixture(scope="module")
def undisturbed(spec: FinetuneSpec, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one node that nobody disturbed."""
    alone = spec.model_copy(update={"settings": spec.settings.model_copy(update={"nodes": 1, "min_nodes": None})})
    job = TrainingJob(alone, tmp_path_factory.mktemp("calm") / "home", nodes=1)
    job.run()
    return job.losses()


@pytest.fixture
def job(spec: FinetuneSpec, tmp_path: Path) -> Iterator[TrainingJob]:
    """Running, with a checkpoint."""
    job = TrainingJob(spec, tmp_path / "home", nodes=2)
    backend, request = job.backend(), job.request().model_copy(update={"min_nodes": 1})
    backend.submit(request)
    try:
        wait_until(
            lambda: job.has_checkpoint() or backend.status(request.job_id).state != "running", "a checkpoint", job
        )
        yield job
    finally:
        backend.cancel(request.job_id)


def ends(job: TrainingJob) -> JobStatus:
    backend, job_id = job.backend(), job.request().job_id
    wait_until(lambda: backend.status(job_id).state != "running", "the job's end", job)
    return backend.status(job_id)


def node_process(job: TrainingJob, rank: int) -> int:
    """The step of node `rank`."""
    found = processes_with("-m pipeline finetune", job.key, without="torch.distributed.run")
    of_rank = [
        pid for pid in found if f"SLIPWAY_NODE_RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    ]
    return of_rank[0]


def meeting_place(job: TrainingJob) -> int:
    own = json.loads((job.home / "jobs" / job.request().job_id / "runner.json").read_text())["pid"]
    found = processes_with("pipeline.training.rendezvous", without="bash")
    return next(pid for pid in found if f"PPid:\t{own}\n" in Path(f"/proc/{pid}/status").read_text())


LOSSES: dict[str, Callable[[TrainingJob], int]] = {
    "a rank": lambda job: job.workers()[0],
    "a node": lambda job: node_process(job, 1),
    "the first node": lambda job: node_process(job, 0),
    "the place where they meet": meeting_place,
}


@pytest.mark.drill
@pytest.mark.parametrize("lost", LOSSES)
def test_a_training_goes_on_without_what_it_has_lost_until_it_is_back(
    lost: str, job: TrainingJob, undisturbed: list[float]
) -> None:
    """From the last checkpoint; the job never ends in between."""
    began = time.monotonic()
    kill(LOSSES[lost](job))
    assert ends(job) == JobStatus(state="succeeded", exit_code=0), job.log
    print(f"{lost}: ended {time.monotonic() - began:.1f} s after the kill")
    assert re.search(r"resumed from the checkpoint of step \d+0", job.log)
    assert job.losses() == pytest.approx(undisturbed, abs=AGREE)
