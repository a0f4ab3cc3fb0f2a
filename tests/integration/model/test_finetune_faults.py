"""Kills in the middle of a training: it goes on from the last checkpoint, and ends with the very same model."""

import shutil
from pathlib import Path

import pytest
from training_jobs import TrainingJob, kill, make_spec, processes_with, publish_dataset, rows, running, wait_until

from pipeline import artifacts
from pipeline.contracts.specs import FinetuneSpec
from pipeline.errors import IntegrityError, TransientError
from pipeline.training import launch
from slipway_airflow.backends.base import JobStatus

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> FinetuneSpec:
    """Long enough to be killed in the middle; with dropout, whose randomness must be the same too."""
    dataset = publish_dataset(tmp_path_factory.mktemp("data") / "store", rows())
    init = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_layers": 1, "num_heads": 2}
    return make_spec(dataset, {"init": {**init, "attention_dropout": 0.1}}, epochs=25, checkpoint_every_steps=20)


@pytest.fixture(scope="module")
def undisturbed_digest(spec: FinetuneSpec, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the artifact that nobody disturbed."""
    return TrainingJob(spec, tmp_path_factory.mktemp("calm") / "home", nodes=2).run().digest


def kill_at_a_checkpoint(job: TrainingJob) -> None:
    """kill -9 of all steps, which takes their agents and ranks along."""
    wait_until(job.has_checkpoint, "a checkpoint", job)
    for process in job.processes:
        process.kill()
    job.wait()
    wait_until(lambda: not job.workers(), "the end of the ranks", job)


@pytest.mark.drill
def test_a_killed_rank_is_restarted_inside_the_living_job(
    spec: FinetuneSpec, undisturbed_digest: str, tmp_path: Path
) -> None:
    """torchrun starts all ranks again, and nobody outside notices."""
    with running(TrainingJob(spec, tmp_path / "home", nodes=2)) as job:
        wait_until(job.has_checkpoint, "a checkpoint", job)
        kill(job.workers()[0])
        assert job.wait() == [0, 0], job.log
    assert "resumed from the checkpoint of step" in job.log
    assert artifacts.read_manifest(job.out_uri).digest == undisturbed_digest


def test_the_next_attempt_goes_on_where_a_killed_job_was(
    spec: FinetuneSpec, undisturbed_digest: str, tmp_path: Path
) -> None:
    """The same job started again ends the same."""
    with running(TrainingJob(spec, tmp_path / "home", nodes=2)) as job:
        kill_at_a_checkpoint(job)
        job.run()
    assert "resumed from the checkpoint of step" in job.log
    assert artifacts.read_manifest(job.out_uri).digest == undisturbed_digest


@pytest.mark.drill
def test_a_damaged_checkpoint_ends_the_attempt_and_the_others_stay(
    spec: FinetuneSpec, undisturbed_digest: str, tmp_path: Path
) -> None:
    """As bad data; without the damaged one the next attempt goes on from the one before, or begins anew."""
    with running(TrainingJob(spec, tmp_path / "home", nodes=2)) as job:
        kill_at_a_checkpoint(job)
        newest = max(job.home.glob("store/checkpoints/*/step-*/complete")).parent
        part = next(newest.glob("rank-0001*.safetensors"))
        part.write_bytes(part.read_bytes()[:-1] + b"!")

        job.start()
        assert job.wait()[0] == IntegrityError.exit_code, job.log
        assert f"{part} has digest" in job.log
        assert job.has_checkpoint()

        shutil.rmtree(newest)
        job.run()
    assert artifacts.read_manifest(job.out_uri).digest == undisturbed_digest


@pytest.mark.drill
def test_the_next_attempt_may_have_another_number_of_nodes(spec: FinetuneSpec, tmp_path: Path) -> None:
    """And another stage of ZeRO: what changes is how the work is divided."""
    with running(TrainingJob(spec, tmp_path / "home", nodes=2)) as job:
        kill_at_a_checkpoint(job)
    changes = {"nodes": 1, "parallelism": spec.settings.parallelism.model_copy(update={"zero": 2})}
    changed = spec.model_copy(update={"settings": spec.settings.model_copy(update=changes)})
    alone = TrainingJob(changed, job.home, nodes=1)
    alone.run()
    assert alone.key != job.key
    assert "resumed from the checkpoint of step" in alone.log
    assert not alone.has_checkpoint()


def test_a_job_that_loses_an_agent_ends_on_all_nodes(spec: FinetuneSpec, tmp_path: Path) -> None:
    """kill -9 of a node's torchrun, under a backend: nobody waits for it to come back, and no process is left."""
    job = TrainingJob(spec, tmp_path / "home", nodes=2)
    backend, request = job.backend(), job.request()
    try:
        backend.submit(request)
        wait_until(job.has_checkpoint, "a checkpoint", job)
        (agent,) = processes_with(f"--plan={job.scratch}/node-1/", "torch.distributed.run", without="bash")
        kill(agent)
        wait_until(lambda: backend.status(request.job_id).state != "running", "the job's end", job)
        assert backend.status(request.job_id) == JobStatus(state="failed", exit_code=75)
        assert job.workers() == []
        assert "the next attempt goes on from the last checkpoint" in job.log
    finally:
        backend.cancel(request.job_id)


def test_sigterm_stops_every_rank(spec: FinetuneSpec, tmp_path: Path) -> None:
    """And the step says so with its exit code, 128 + 15."""
    with running(TrainingJob(spec, tmp_path / "home", nodes=2)) as job:
        wait_until(job.has_checkpoint, "a checkpoint", job)
        for process in job.processes:
            process.terminate()
        assert job.wait() == [143, 143], job.log
        assert job.workers() == []


def test_a_node_that_the_others_never_join_ends_with_what_was_missing(spec: FinetuneSpec, tmp_path: Path) -> None:
    """As a fault that may pass, in the time that the recipe gives it."""
    impatient = spec.model_copy(update={"settings": spec.settings.model_copy(update={"join_timeout_s": 5})})
    alone = {"SLIPWAY_NODES": "2", "SLIPWAY_RENDEZVOUS": f"127.0.0.1:{launch.free_port()}"}
    with running(TrainingJob(impatient, tmp_path / "home", nodes=1, environment=alone)) as job:
        assert job.wait() == [TransientError.exit_code], job.log
    assert "fewer than 2 nodes came together within 5 s (finetune.join_timeout_s)" in job.log
