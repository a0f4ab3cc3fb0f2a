"""Real steps in real images: the same artifacts as from processes, and trainings that survive what is done to them."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import containers, settings
from pipeline.contracts import specs
from pipeline.contracts.base import progress_key
from pipeline.contracts.specs import FinetuneSpec
from pipeline.settings import Settings
from slipway_airflow.backends.base import JobRequest
from slipway_airflow.backends.docker import DockerBackend
from slipway_airflow.backends.process import ProcessBackend
from tests.contracts.backend_conformance import wait_for, whole_log
from tests.integration.docker.release_chain import Chain

pytestmark = [pytest.mark.integration, pytest.mark.needs("docker")]

STEPS = ("plan", "validate", "finetune")


@pytest.fixture(scope="module")
def configured(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    home_path = tmp_path_factory.mktemp("containers") / "home"
    home_path.mkdir()
    configured = settings.load({"SLIPWAY_HOME": str(home_path)})
    yield configured
    containers.remove_all(containers.connect(), configured)


@pytest.fixture(scope="module")
def in_containers(configured: Settings) -> Chain:
    return Chain(configured, DockerBackend(configured))


@pytest.fixture(scope="module")
def spec(in_containers: Chain) -> FinetuneSpec:
    return in_containers.finetune_spec(in_containers.planned())


@pytest.fixture(scope="module")
def calm_digest(in_containers: Chain, spec: FinetuneSpec) -> str:
    """Of a training in two containers that nobody disturbed."""
    return in_containers.run("finetune", spec, nodes=2).digest


def digests(chain: Chain) -> dict[str, str]:
    """Step to the digest of its artifact in the chain's store."""
    found = Path(chain.settings.home_path / "store").glob("*/*/manifest.json")
    return {path.parents[1].name: json.loads(path.read_bytes())["digest"] for path in found}


def test_the_same_spec_gives_the_same_digests_as_processes(
    in_containers: Chain, calm_digest: str, tmp_path: Path
) -> None:
    """Every artifact from the plan to the trained model, bit by bit; only the manifest says that it was a container."""
    home = settings.load({"SLIPWAY_HOME": str(tmp_path / "home")})
    processes = Chain(home, ProcessBackend(home))
    trained = processes.run("finetune", processes.finetune_spec(processes.planned()), nodes=2)
    print("seconds as containers", in_containers.seconds, "as processes", processes.seconds)
    assert trained.digest == calm_digest
    ours, theirs = digests(in_containers), digests(processes)
    assert {step: ours[step] for step in ("generate", "validate", "finetune")} == {
        step: theirs[step] for step in ("generate", "validate", "finetune")
    }
    images = [json.loads(path.read_bytes())["image"] for path in (home.home_path / "store").glob("*/*/manifest.json")]
    assert set(images) == {None}


def test_a_manifest_names_its_image_by_digest(in_containers: Chain, spec: FinetuneSpec, calm_digest: str) -> None:
    """As the engine knows it."""
    image = in_containers.manifest(in_containers.request("finetune", spec)).image
    assert re.fullmatch(r"slipway/model:[\w.-]+@sha256:[0-9a-f]{64}", str(image))


@pytest.mark.drill
def test_a_training_goes_on_from_its_last_checkpoint_when_a_container_is_killed(
    configured: Settings, spec: FinetuneSpec, calm_digest: str, tmp_path: Path
) -> None:
    """kill -9 of one of two nodes ends the job as lost; the next try resumes, and ends with the very same model."""
    home = elsewhere(configured, tmp_path)
    chain = Chain(home, DockerBackend(home))
    request = chain.request("finetune", spec, nodes=2)
    chain.backend.submit(request)
    wait_for("steps beyond a checkpoint", lambda: last_step(chain, request.job_id) > last_checkpoint(chain, spec) > 0)
    second = containers.node_name(home, request.job_id, 1)
    subprocess.run(["docker", "kill", "-s", "KILL", second], check=True, capture_output=True)
    began = time.monotonic()
    wait_for("the loss is noticed", lambda: chain.backend.status(request.job_id).state != "running")
    noticed_s = time.monotonic() - began
    assert chain.backend.status(request.job_id).state == "lost"
    reached = last_step(chain, request.job_id)
    assert not chain.backend.submit(request).attached
    chain.wait(request)
    log = whole_log(chain.backend, request.job_id)
    assert chain.backend.status(request.job_id).state == "succeeded", log
    resumed = re.findall(r"resumed from the checkpoint of step (\d+)", log)
    assert len(resumed) == 1, log
    lost_steps = reached - int(resumed[0])
    print(
        f"killed at step {reached} or up to nine later, noticed after {noticed_s:.1f} s, resumed at step {resumed[0]}:"
        f" {lost_steps} or up to nine more lost; done after {time.monotonic() - began:.1f} s"
    )
    assert 0 < lost_steps <= spec.settings.checkpoint_every_steps
    assert chain.manifest(request).digest == calm_digest


def elsewhere(configured: Settings, tmp_path: Path) -> Settings:
    """Another store in the same home, so that the job finds its input and not its result."""
    return configured.model_copy(update={"store_uri": (configured.home_path / tmp_path.name).as_uri()})


def last_step(chain: Chain, job_id: str) -> int:
    """That the training has told of: it tells of every tenth, and of every checkpoint."""
    return max(map(int, re.findall(r"progress (\d+)/.*loss=", whole_log(chain.backend, job_id))), default=0)


def last_checkpoint(chain: Chain, spec: FinetuneSpec) -> int:
    """The newest complete one in the store; 0 if there is none."""
    request: JobRequest = chain.request("finetune", spec, nodes=2)
    store = request.arguments[-1].removeprefix("file://").rsplit("/", 2)[0]
    key = progress_key("finetune", specs.STEPS["finetune"].version, spec)
    found = Path(store, "checkpoints", key).glob("step-*/complete")
    return max((int(path.parent.name.removeprefix("step-")) for path in found), default=0)
