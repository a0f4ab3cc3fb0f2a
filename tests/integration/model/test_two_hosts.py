"""Faults between two hosts with disks of their own: how soon they are noticed, what they cost, and how it ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import HostsJob, Network, Recovery, measure, on_two_hosts
from training_jobs import TrainingJob, kill, make_spec, publish_dataset, rows

from pipeline.contracts.specs import FinetuneSpec

pytestmark = [pytest.mark.integration, pytest.mark.needs("netns")]

AGREE = 1e-5
"""Between losses, in nats."""
EVERY = 20
"""Steps between checkpoints; one is complete when the ranks have next exchanged their figures."""
EXCHANGE = 10
STALL_S = 8.0
SOON_S = 120.0
"""A machine that does much else at once may take several times what is usual (docs/operations.md)."""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> FinetuneSpec:
    """Two nodes, of which one suffices; long enough to be disturbed."""
    dataset = publish_dataset(tmp_path_factory.mktemp("data") / "store", rows())
    return make_spec(dataset, epochs=50, checkpoint_every_steps=EVERY, min_nodes=1, stall_timeout_s=STALL_S)


@pytest.fixture(scope="module")
def undisturbed(spec: FinetuneSpec, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one node that nobody disturbed."""
    alone = spec.model_copy(update={"settings": spec.settings.model_copy(update={"nodes": 1, "min_nodes": None})})
    job = TrainingJob(alone, tmp_path_factory.mktemp("calm") / "home", nodes=1)
    job.run()
    return job.losses()


@pytest.fixture
def job(spec: FinetuneSpec, tmp_path: Path) -> Iterator[HostsJob]:
    """Running on both hosts, with a checkpoint."""
    with on_two_hosts(HostsJob(spec, tmp_path / "home", nodes=2, network=Network())) as job:
        job.watch(job.has_checkpoint, "a checkpoint")
        yield job


def ended_well(job: HostsJob, recovery: Recovery, undisturbed: list[float]) -> None:
    print(recovery)
    assert recovery.noticed_s < SOON_S
    assert recovery.next_step_s < SOON_S
    assert recovery.steps_lost <= EVERY + 2 * EXCHANGE
    assert job.losses() == pytest.approx(undisturbed, abs=AGREE)


def test_a_lost_node_is_gone_on_without_and_taken_back(job: HostsJob, undisturbed: list[float]) -> None:
    """The other one goes on alone; the node comes back with a disk that knows nothing, and trains again."""
    recovery = measure(job, "a node lost for good", job.processes[1].kill)
    job.watch(lambda: job.processes[1].poll() is not None, "the end of the node")
    assert job.ranks_of(1) == []
    rejoined = measure(job, "a node back", lambda: job.processes.__setitem__(1, job.start_node(1)))
    assert job.ranks_of(1) != []
    print(rejoined)
    job.to_its_end()
    ended_well(job, recovery, undisturbed)


@pytest.mark.drill
def test_a_killed_rank_brings_all_ranks_back(job: HostsJob, undisturbed: list[float]) -> None:
    """Under the same agents."""
    recovery = measure(job, "a rank", lambda: kill(job.ranks_of(1)[0]))
    job.to_its_end()
    ended_well(job, recovery, undisturbed)


@pytest.mark.drill
def test_a_lost_meeting_place_is_opened_again(job: HostsJob, undisturbed: list[float]) -> None:
    """The agents die with it, and the nodes are started again."""
    assert job.meeting_place is not None
    lost = job.meeting_place

    def lose() -> None:
        lost.kill()
        lost.wait()

    def restart() -> None:
        job.open_meeting_place()
        for rank in (0, 1):
            job.processes[rank].wait(timeout=SOON_S)
            job.processes[rank] = job.start_node(rank)

    recovery = measure(job, "the meeting place", lose, back=restart)
    job.to_its_end()
    ended_well(job, recovery, undisturbed)


@pytest.mark.drill
def test_a_cut_cable_is_noticed_by_a_watchdog(job: HostsJob, undisturbed: list[float]) -> None:
    """No connection breaks; the host that still reaches the meeting place goes on, and the other one comes back."""
    recovery = measure(job, "a cable", lambda: job.network.cut(1))
    assert "the training stands still: rank" in job.log
    assert job.ranks_of(1) == []
    job.network.mend(1)
    job.to_its_end()
    ended_well(job, recovery, undisturbed)


@pytest.mark.drill
def test_ranks_that_never_reach_each_other_say_so_and_begin_anew(
    spec: FinetuneSpec, undisturbed: list[float], tmp_path: Path
) -> None:
    """Though both reach the meeting place, nothing passes between the hosts until it is mended."""
    with on_two_hosts(HostsJob(spec, tmp_path / "home", nodes=2, network=Network()), parted=True) as job:
        job.watch(lambda: "has been meeting the other ranks for more than" in job.log, "the end of the wait")
        job.network.join()
        job.to_its_end()
    assert job.losses() == pytest.approx(undisturbed, abs=AGREE)


@pytest.mark.drill
def test_all_nodes_at_once_go_on_from_the_store(job: HostsJob, undisturbed: list[float]) -> None:
    """With nothing left but what is there."""

    def lose() -> None:
        for process in job.processes:
            process.kill()
        for process in job.processes:
            process.wait()

    def restart() -> None:
        job.processes = [job.start_node(rank) for rank in (0, 1)]

    recovery = measure(job, "all nodes", lose, back=restart)
    job.to_its_end()
    ended_well(job, recovery, undisturbed)
