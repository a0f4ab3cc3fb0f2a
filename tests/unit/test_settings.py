"""The environment as settings."""

from pathlib import Path

import pytest

from pipeline import __version__, settings
from pipeline.errors import SpecError


def test_without_any_variable_all_state_lies_in_the_checkout() -> None:
    """One hidden folder, one local store."""
    plain = settings.load({})

    assert plain.home_path == settings.ROOT / ".slipway"
    assert plain.store_uri == (settings.ROOT / ".slipway" / "store").as_uri()
    assert plain.tracking_uri is None
    assert (plain.nodes, plain.node_rank) == (1, 0)


def test_variables_say_where_things_are(tmp_path: Path) -> None:
    """A trailing slash of the store makes no other store."""
    set_up = settings.load({"SLIPWAY_HOME": str(tmp_path), "SLIPWAY_STORE": "s3://bucket/x/", "SLIPWAY_RELEASE": "r"})

    assert set_up.work_path == tmp_path / "work"
    assert set_up.store_uri == "s3://bucket/x"
    assert set_up.release == "r"


def test_a_home_with_a_blank_gives_a_store_that_opens() -> None:
    """As a proper URI."""
    assert settings.load({"SLIPWAY_HOME": "/with blank/#1"}).store_uri == "file:///with%20blank/%231/store"


def test_images_are_those_of_this_release_unless_a_tag_is_given() -> None:
    """And a process of the machine runs in none."""
    assert settings.load({}).image_tag == f"{__version__}-cpu"
    assert settings.load({}).image is None
    named = settings.load({"SLIPWAY_IMAGE_TAG": "0.1.0-cuda", "SLIPWAY_IMAGE": "slipway/model@sha256:1"})
    assert (named.image_tag, named.image) == ("0.1.0-cuda", "slipway/model@sha256:1")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"SLIPWAY_NODES": "two"}, "SLIPWAY_NODES is 'two', expected a whole number"),
        ({"SLIPWAY_NODE_RANK": "-1"}, "SLIPWAY_NODE_RANK is '-1'"),
        ({"SLIPWAY_NODES": "2", "SLIPWAY_NODE_RANK": "2"}, "SLIPWAY_NODE_RANK is 2, expected 0 to 1"),
        ({"SLIPWAY_NODES": "0"}, "expected 0 to -1"),
    ],
)
def test_a_value_that_is_none_is_refused(environ: dict[str, str], message: str) -> None:
    """Naming the variable."""
    with pytest.raises(SpecError, match=message):
        settings.load(environ)


def test_a_node_keeps_the_cores_busy_that_it_was_given() -> None:
    """Where nobody limits it, that is for whoever starts threads to find out."""
    assert settings.load({}).cpus is None
    assert settings.load({"SLIPWAY_CPUS": "3"}).cpus == 3
    with pytest.raises(SpecError, match=r"SLIPWAY_CPUS is '1\.5', expected a whole number"):
        settings.load({"SLIPWAY_CPUS": "1.5"})


def test_a_backend_counts_as_chosen_only_if_somebody_chose_it() -> None:
    """So that a home's own choice stands where the environment says nothing."""
    assert settings.load({}).backend == "process"
    assert "backend" not in settings.load({}).model_fields_set
    assert "backend" in settings.load({"SLIPWAY_BACKEND": "process"}).model_fields_set
    with pytest.raises(SpecError, match="SLIPWAY_BACKEND is 'podman', expected one of process, docker, agent"):
        settings.load({"SLIPWAY_BACKEND": "podman"})


@pytest.mark.parametrize(("rank", "is_host"), [("0", True), ("1", False)])
def test_the_first_of_torchruns_ranks_listens_where_all_meet(rank: str, is_host: bool) -> None:
    """The others call it there."""
    environ = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "RANK": rank}
    assert settings.meeting_of_ranks(environ) == ("10.0.0.1", 29500, is_host)


def test_regions_are_names_with_addresses_in_the_order_of_preference() -> None:
    """None at all is one region on loopback."""
    assert settings.load({}).regions == {}
    regions = settings.load({"SLIPWAY_REGIONS": "west=127.0.0.1, east=127.0.0.2"}).regions
    assert list(regions.items()) == [("west", "127.0.0.1"), ("east", "127.0.0.2")]


@pytest.mark.parametrize("text", ["west", "west=here", "west=127.0.0.1,east=127.0.0.1", "=127.0.0.1", "a b=127.0.0.1"])
def test_regions_that_cannot_be_told_apart_are_refused(text: str) -> None:
    """By name and by address."""
    with pytest.raises(SpecError, match="SLIPWAY_REGIONS"):
        settings.load({"SLIPWAY_REGIONS": text})
