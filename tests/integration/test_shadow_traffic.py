"""A canary's first trial on copies of clients' requests: a real gateway mirrors, stand-in replicas answer."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fleet_rig import MODEL, Rig

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A fleet that serves version 1, and tries every version as a shadow first."""
    rig = Rig(tmp_path_factory.mktemp("shadow"))
    rig.up()
    rig.roll_out("1")
    rig.registry.configure(shadow={"percent": 100, "seconds": 3.0}, steps=[100])
    yield rig
    rig.supervisor.stop()


@pytest.mark.parametrize(
    ("version", "manners", "reason"),
    [("2", {"error_rate": 0.5}, "error rate|refused probes"), ("3", {"delay_s": 0.4}, "latency")],
)
def test_a_bad_version_is_refused_before_any_client_sees_it(
    rig: Rig, version: str, manners: dict[str, Any], reason: str
) -> None:
    """By the errors, or the times, of answers that nobody got."""
    rig.behave(version, **manners)
    with rig.load() as load:
        results = {result.phase: result for result in rig.roll_out(version)}
    assert results["shift"].outcome == "unhealthy"
    assert load.failures == []
    assert load.count(version) == 0
    last = rig.state().history[-1]
    assert last.reason.startswith("as a shadow: ")
    assert re.search(reason, last.reason)
    assert (rig.state().shadow, rig.state().weights) == (0, {1: 100})
    assert rig.registry.alias(MODEL, "champion") == "1"


def test_a_good_version_goes_on_to_its_steps(rig: Rig) -> None:
    """It was asked what clients asked, and said so; afterwards nothing is copied any more."""
    with rig.load() as load:
        results = {result.phase: result for result in rig.roll_out("4")}
    assert results["promote"].outcome == "done"
    assert load.failures == []
    told = next(said for said in rig.said if said.startswith("as a shadow it is healthy"))
    copies = re.search(r"clients asked the canary (\d+) times", told)
    assert copies is not None
    assert int(copies[1]) >= 10
    assert rig.state().shadow == 0
    assert rig.ask().headers["x-slipway-version"] == "4"
