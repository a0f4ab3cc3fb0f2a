"""What `up --backend docker` asks the engine before it lets steps be containers."""

import ipaddress
from pathlib import Path

import pytest

from pipeline import containers, settings
from pipeline.errors import SpecError
from pipeline.images import ENVIRONMENTS, tagged
from pipeline.stack import jobs_part
from pipeline.stack.layout import Layout

pytestmark = [pytest.mark.integration, pytest.mark.needs("docker")]


def test_images_that_are_missing_are_all_named_and_nothing_is_chosen(tmp_path: Path) -> None:
    """With the command that makes them."""
    layout = Layout(tmp_path)
    configured = settings.load({"SLIPWAY_HOME": str(tmp_path), "SLIPWAY_IMAGE_TAG": "0.0.0-nobodys"})
    with pytest.raises(SpecError, match="run `make images`") as caught:
        jobs_part.choose(layout, configured, "docker")
    assert all(tagged(environment, "0.0.0-nobodys") in str(caught.value) for environment in ENVIRONMENTS)
    assert jobs_part.place_of(layout).backend == "process"


def test_the_machine_has_an_address_that_containers_see() -> None:
    """There the gateway listens for them, on behalf of MLflow."""
    assert ipaddress.ip_address(containers.bridge_address(containers.connect())).is_private
