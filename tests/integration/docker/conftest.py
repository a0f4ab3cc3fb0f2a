"""The images that all container tests share: built once a run, which is nearly free when nothing changed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipeline import settings
from pipeline.images import ENVIRONMENTS, image_name
from tests.integration.docker import compose_release
from tests.integration.docker.compose_stack import ComposeStack, running
from tests.integration.docker.image_builds import build_images


@pytest.fixture(scope="session")
def images() -> dict[str, str]:
    """Environment to the name of its image."""
    build_images()
    return {environment: image_name(environment, settings.load({})) for environment in ENVIRONMENTS}


@pytest.fixture(scope="session")
def compose_stack(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[ComposeStack]:
    """The stack of docker-compose.yml, healthy. Tests that break parts of it put them right again.

    A release is under way in it from the start: what only looks at the stack does so meanwhile.
    """
    stack = ComposeStack.prepare(tmp_path_factory.mktemp("compose"))
    with ThreadPoolExecutor() as pool:
        # The images of others are downloads for the most part, ours arithmetic.
        others = pool.submit(stack.compose, "build", "--quiet")
        request.getfixturevalue("images")
        others.result()
    with running(stack):
        compose_release.ask_for_release(stack, "by-hand")
        yield stack


@pytest.fixture(scope="session")
def released(compose_stack: ComposeStack) -> dict[str, Any]:
    """The tasks of the stack's first release, by name. Its rollout may still be under way."""
    return compose_release.succeeded(compose_stack, "release", "by-hand")
