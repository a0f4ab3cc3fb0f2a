"""The fleet's state files."""

import multiprocessing
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from pipeline.errors import SpecError
from pipeline.fleet.doors import replica_door
from pipeline.fleet.files import FleetFiles
from pipeline.fleet.gateway import probe_key
from pipeline.fleet.state import Aside, Deployment, ModelFleet, Replica, Rollout, Served
from pipeline.fleet.views import healthy_addresses, read_fleet
from pipeline.stack.layout import Layout

DIGEST = "0" * 64


def deployment(generation: int, ports: tuple[int, ...] = (1, 2)) -> Deployment:
    replicas = tuple(Replica(id=f"replica-m-v1-g{generation}-{port}", port=port) for port in ports)
    return Deployment(version="1", generation=generation, bundle_digest=DIGEST, replicas=replicas)


def test_a_model_nobody_rolled_out_is_empty(tmp_path: Path) -> None:
    """Reading creates nothing."""
    assert FleetFiles(tmp_path).get("m") == ModelFleet(name="m")
    assert read_fleet(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """With weights by deployment, and health unknown without a gateway."""
    served = Served(version="1", generation=3, deployment=2)
    model = ModelFleet(name="m", generation=3, serving=served, weights={2: 100}, deployments=(deployment(2),))
    FleetFiles(tmp_path).write(model)
    assert FleetFiles(tmp_path).get("m").changed(unrecorded=()) == model
    view = read_fleet(tmp_path)["m"]
    assert [(replica.healthy, replica.weight) for replica in view.replicas] == [(None, 50.0), (None, 50.0)]


def test_a_region_that_stands_by_takes_no_share_of_the_traffic(tmp_path: Path) -> None:
    """The replicas of the first one share all of it, until none of them is left to be used."""
    near, far = (
        Replica(id=name, port=port, region=name, rank=rank)
        for rank, (name, port) in enumerate((("near", 1), ("far", 2)))
    )
    aside = near.model_copy(update={"aside": Aside(kind="slow", reason="slow", since=0.0)})

    def shares(*replicas: Replica) -> list[float]:
        found = deployment(2).model_copy(update={"replicas": replicas})
        served = Served(version="1", generation=2, deployment=2)
        FleetFiles(tmp_path).write(
            ModelFleet(name="m", generation=2, serving=served, weights={2: 100}, deployments=(found,))
        )
        return [replica.weight for replica in read_fleet(tmp_path)["m"].replicas]

    assert shares(near, far) == [100.0, 0.0]
    assert shares(aside, far) == [0.0, 100.0]


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    """And never an empty fleet."""
    files = FleetFiles(tmp_path)
    files.write(ModelFleet(name="m"))
    (files.folder / "m.json").write_text('{"name": "m", "generation": ')
    with pytest.raises(SpecError, match=r"m\.json is damaged"):
        files.get("m")


def count_up(home: Path, times: int) -> None:
    files = FleetFiles(home)
    for _ in range(times):
        files.update("m", lambda model: model.changed(generation=model.generation + 1))


def test_changes_of_several_processes_are_all_kept(tmp_path: Path) -> None:
    """Each is made on what the file says under the lock."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=count_up, args=(tmp_path, 20)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert FleetFiles(tmp_path).get("m").generation == 60


def test_only_the_last_rollouts_are_kept() -> None:
    """In order, and a repeated one replaces itself."""
    model = ModelFleet(name="m")
    for generation in range(1, 70):
        for outcome in ("running", "promoted"):
            rollout = Rollout(
                generation=generation,
                request_id=f"r{generation}",
                version="1",
                previous=None,
                outcome=outcome,
                started_at=0.0,
            )
            model = model.with_rollout(rollout)
    assert [rollout.generation for rollout in model.history] == list(range(20, 70))
    assert model.requested("r69") == model.rollout(69)
    assert model.requested("r1") is None


def test_a_host_is_healthy_only_where_every_cluster_says_so() -> None:
    """A stable replica is also the fallback in the canary's cluster."""

    def host(port: int, **health: object) -> dict[str, object]:
        status = {"eds_health_status": "HEALTHY", **health}
        address = {"socket_address": {"address": "10.0.0.1", "port_value": port}}
        return {"address": address, "health_status": status}

    answer = {
        "cluster_statuses": [
            {"host_statuses": [host(1), host(2, failed_active_health_check=True)]},
            {"host_statuses": [host(1, failed_outlier_check=True), host(3)]},
            {},
        ]
    }
    assert healthy_addresses(answer) == {"10.0.0.1:1": False, "10.0.0.1:2": False, "10.0.0.1:3": True}


@pytest.mark.parametrize("made", [probe_key, replica_door.secret])
def test_programs_that_start_at_once_go_by_one_secret(
    made: Callable[[Layout], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each finds none and makes one; all go by the first."""
    both, numbers = threading.Barrier(2, timeout=30), count()

    def draw(num_bytes: int) -> str:
        both.wait()
        return str(next(numbers))

    monkeypatch.setattr(secrets, "token_urlsafe", draw)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(made, [Layout(tmp_path)] * 2))
    assert found[0] == found[1] == made(Layout(tmp_path))
    (path,) = (tmp_path / "fleet").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
