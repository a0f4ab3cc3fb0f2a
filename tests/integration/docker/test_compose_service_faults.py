"""Every service of the compose stack killed in turn, during a release and during its rollout, with clients asking.

What it prints is in docs/operations.md.
"""

import itertools
from collections.abc import Iterator

import pytest

from tests.e2e.clients import constant_clients
from tests.integration.docker.compose_release import (
    MODEL,
    alias,
    ask_for_release,
    newest_run,
    run_state,
    succeeded,
    tasks_of,
    wait_until,
)
from tests.integration.docker.compose_stack import ComposeStack
from tests.integration.docker.service_drill import Drill, crash, kill_and_start

pytestmark = [pytest.mark.integration, pytest.mark.needs("docker"), pytest.mark.drill, pytest.mark.timeout(1800)]

RELEASE = "under-fire"
ANALYSIS = ("gateway", "prometheus")
"""They are struck while both versions have a share of the traffic."""
LASTING = {
    # Few of the cores, so that the training lasts while services start beside it.
    "resources.finetune.cpus": 0.4,
    "finetune.nodes": 2,
    "finetune.epochs": 240,
    "finetune.checkpoint_every_steps": 20,
    "gates.champion_margin": 1,
    "rollout.replicas": 1,
    "rollout.steps": [50, 100],
    "rollout.step_s": 60,
    "rollout.keep_warm_s": 0,
    # Versions that share two cores with starting services are not compared by their speed.
    "rollout.max_latency_ratio": 100,
}


def lasting(stack: ComposeStack) -> set[str]:
    """Every service of the compose files that goes on for as long as the stack does."""
    return {name for name, lasts in stack.services().items() if lasts}


@pytest.fixture(scope="module")
def drill(compose_stack: ComposeStack, released: object) -> Iterator[Drill]:
    """With two clients of the first version, which is served by now."""
    wait_until(lambda: alias(compose_stack, "serving") == "1", "the first rollout")
    with constant_clients(compose_stack.url("gateway"), compose_stack.secret("gateway_api_key"), MODEL) as load:
        wait_until(lambda: load.answers.total() > 0, "an answer")
        yield Drill(compose_stack, load)


@pytest.fixture(scope="module")
def release_drill(drill: Drill) -> Drill:
    """Every service has crashed, then was killed and started, while a model was trained, and the release is over."""
    ask_for_release(drill.stack, RELEASE, **LASTING)

    def trains() -> bool:
        return tasks_of(drill.stack, "release", RELEASE)["finetune"]["state"] == "deferred"

    wait_until(trains, "the training")
    for kill, service in itertools.product((crash, kill_and_start), sorted(lasting(drill.stack))):
        drill.strike(service, kill, "release")
        assert tasks_of(drill.stack, "release", RELEASE)["finetune"]["state"] != "success", "the training was too short"
    assert run_state(drill.stack, "release", RELEASE) == "running"
    tasks = succeeded(drill.stack, "release", RELEASE)
    print(drill.table(), {name: task["try_number"] for name, task in tasks.items()}, sep="\n")
    return drill


@pytest.fixture(scope="module")
def rollout_drill(release_drill: Drill) -> Drill:
    """Every service was killed and started while the release's version was rolled out, and the rollout is over."""
    drill, stack = release_drill, release_drill.stack
    wait_until(lambda: run_state(stack, "rollout", newest_run(stack, "rollout")) == "running", "the rollout")
    rollout = newest_run(stack, "rollout")
    for service in sorted(lasting(stack) - set(ANALYSIS)):
        drill.strike(service, kill_and_start, "rollout")
    wait_until(lambda: drill.load.answers["2"] > 0, "the new version has a share of the traffic")
    for service in ANALYSIS:
        drill.strike(service, kill_and_start, "rollout")
    tasks = succeeded(stack, "rollout", rollout)
    print(drill.table(), {name: task["try_number"] for name, task in tasks.items()}, sep="\n")
    return drill


def test_a_release_outlives_every_death_of_every_service(release_drill: Drill) -> None:
    """After a crash by itself, after `docker compose kill` with a `start`; the training never stops."""
    assert alias(release_drill.stack, "champion") == "2"


def test_a_rollout_outlives_the_death_of_every_service(rollout_drill: Drill) -> None:
    """What a person killed needs a person's `start`, and nothing else; the new version takes over."""
    assert alias(rollout_drill.stack, "serving") == "2"
    before = rollout_drill.load.answers["2"]
    wait_until(lambda: rollout_drill.load.answers["2"] > before + 5, "answers of the new version")


def test_only_the_gateways_death_costs_requests(rollout_drill: Drill, capsys: pytest.CaptureFixture[str]) -> None:
    """Replicas and Envoy need none of the others."""
    with capsys.disabled():
        print(f"\n{rollout_drill.table()}\nanswers by version: {dict(rollout_drill.load.answers)}")
    costly = {death.service for death in rollout_drill.deaths if rollout_drill.failures(death)}
    assert costly <= {"gateway"}, rollout_drill.load.failures
