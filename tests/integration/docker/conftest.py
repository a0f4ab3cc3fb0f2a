"""The images that all container tests share: built once a run, which is nearly free when nothing changed."""

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline import settings
from pipeline.images import ENVIRONMENTS, image_name
from tests.integration.docker import compose_release
from tests.integration.docker.compose_stack import ComposeStack, running_stack
from tests.integration.docker.image_builds import build_images


@pytest.fixture(scope="session")
def images() -> dict[str, str]:
    """Environment to the name of its image."""
    build_images()
    return {environment: image_name(environment, settings.load({})) for environment in ENVIRONMENTS}


@pytest.fixture(scope="session")
def compose_stack(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    """The stack of docker-compose.yml, healthy. Tests that break parts of it put them right again."""
    with running_stack(tmp_path_factory.mktemp("compose")) as stack:
        yield stack


@pytest.fixture(scope="session")
def released(compose_stack: ComposeStack) -> dict[str, Any]:
    """The tasks of the stack's first release, by name. Its rollout may still be under way."""
    compose_release.ask_for_release(compose_stack, "by-hand")
    return compose_release.succeeded(compose_stack, "release", "by-hand")
