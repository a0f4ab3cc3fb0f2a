"""Two regions: the local one takes every request that it can, the other takes over when it is lost."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fleet_rig import Rig

from pipeline.fleet.state import Replica

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Two replicas of version 1 in each region, guarded."""
    rig = Rig(tmp_path_factory.mktemp("regions"), regions={"west": "127.0.0.1", "east": "127.0.0.2"})
    rig.up()
    rig.registry.configure(replicas=4)
    rig.roll_out("1")
    rig.guard()
    yield rig
    rig.supervisor.stop()


def region(rig: Rig, name: str) -> list[Replica]:
    return [replica for replica in rig.state().deployments[0].replicas if replica.region == name]


def signal_region(rig: Rig, name: str, number: int) -> None:
    for replica in region(rig, name):
        state = rig.supervisor.state(replica.id)
        assert state
        assert state.pid
        os.kill(state.pid, number)


def requests_of(rig: Rig, name: str) -> int:
    """How many attempts Envoy has made there."""
    figures = rig.gateway.hosts("tiny", rig.state().deployments[0].generation)
    return sum(figures[replica.address].requests for replica in region(rig, name))


def all_well(rig: Rig) -> bool:
    state = rig.state().deployments[0]
    return len(state.trusted) == len(state.replicas) == 4 and rig.fleet.all_healthy(state)


def seconds_until(rig: Rig, condition: Callable[[], Any], timeout_s: float = 90) -> float:
    began = time.monotonic()
    assert rig.gateway.wait(lambda: bool(condition()), timeout_s)
    return time.monotonic() - began


def test_a_region_that_is_killed_fails_no_request_and_takes_its_traffic_back(rig: Rig) -> None:
    """While the local region is well, the other one is given nothing."""
    assert [len(region(rig, name)) for name in ("west", "east")] == [2, 2]
    before = requests_of(rig, "east")
    with rig.load(clients=4) as load:
        while load.total < 100:
            load.over.wait(0.01)
        assert requests_of(rig, "east") == before
        signal_region(rig, "west", signal.SIGKILL)
        over_s = seconds_until(rig, lambda: requests_of(rig, "east") > before)
        well_s = seconds_until(rig, lambda: all_well(rig))
        east, west = requests_of(rig, "east"), requests_of(rig, "west")
        seconds_until(rig, lambda: requests_of(rig, "west") > west + 50)
    print(f"region killed: taken over after {over_s:.2f} s, well after {well_s:.1f} s more, {load.total} requests")
    assert load.failures == []
    assert east > before


@pytest.mark.drill
def test_a_region_that_stands_still_fails_no_request_and_comes_back(rig: Rig) -> None:
    """Half of all replicas may be put aside, and so the whole region is; what it had taken is tried again."""
    seconds_until(rig, lambda: all_well(rig))
    before = requests_of(rig, "east")
    with rig.load(clients=4) as load:
        while load.total < 100:
            load.over.wait(0.01)
        signal_region(rig, "west", signal.SIGSTOP)
        over_s = seconds_until(rig, lambda: requests_of(rig, "east") > before)
        asked = load.total
        flow_s = seconds_until(rig, lambda: load.total > asked + 50)
        well_s = seconds_until(rig, lambda: all_well(rig))
    print(f"region hung: taken over after {over_s:.1f} s, flows after {flow_s:.1f} s more, well after {well_s:.1f} s")
    assert load.failures == []
