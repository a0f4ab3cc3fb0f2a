"""Which replicas of what serves go first, where some are put aside."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from pipeline.fleet.autoscaling.scaling import Scaler
from pipeline.fleet.starting import _make_place
from pipeline.fleet.state import Aside, Replica
from pipeline.stack.layout import Layout
from tests import small_fleet

ASIDE = Aside(kind="slow", reason="slow", since=0.0)
REPLICAS = tuple(
    Replica(id=f"r-{index}", port=20_000 + index, aside=ASIDE if index == 0 else None) for index in range(3)
)
MODEL = small_fleet.serving(*REPLICAS)
SERVES = MODEL.deployments[0]


class Leaving:
    """Notes who leaves, and changes nothing."""

    def __init__(self, home: Path) -> None:
        self.layout = Layout(home)
        self.left: list[set[str]] = []
        self.say = print

    def change(self, *_: object) -> SimpleNamespace:
        return SimpleNamespace()

    def leave(self, _name: str, _generation: int, ids: set[str]) -> None:
        self.left.append(ids)


def test_fewer_replicas_give_up_those_that_are_put_aside_first(tmp_path: Path) -> None:
    """Else those would stay that are given nothing."""
    fleet = Leaving(tmp_path)
    scaler = Scaler(cast(Any, fleet))
    scaler.scale(MODEL, SERVES, 2, "little to do")
    scaler.scale(MODEL, SERVES, 1, "little to do")
    assert fleet.left == [{"r-0"}, {"r-0", "r-2"}]


def test_a_replica_that_is_put_aside_makes_place_first(tmp_path: Path) -> None:
    """It takes no requests anyway."""
    fleet = Leaving(tmp_path)
    _make_place(cast(Any, fleet), MODEL, 2, places=3, by=2)
    assert fleet.left == [{"r-0"}]


def test_no_region_is_left_without_replicas_as_long_as_another_has_more() -> None:
    """After one that was put aside has gone, the newest is the only one of its region."""
    near, far = {"region": "near", "rank": 0}, {"region": "far", "rank": 1}
    replicas = tuple(
        replica.model_copy(update=place)
        for replica, place in zip((*REPLICAS, Replica(id="r-3", port=20_003)), (far, near, far, near), strict=True)
    )
    serves = SERVES.model_copy(update={"replicas": replicas})
    assert [replica.id for replica in serves.dispensable(2)] == ["r-0", "r-3"]
    left = serves.model_copy(update={"replicas": (replicas[1], replicas[2], replicas[3])})
    assert [replica.id for replica in left.dispensable(1)] == ["r-3"]
    uneven = serves.model_copy(update={"replicas": (replicas[1], replicas[3], replicas[2])})
    assert [replica.id for replica in uneven.dispensable(1)] == ["r-3"]
