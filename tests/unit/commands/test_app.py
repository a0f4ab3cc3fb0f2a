"""The command line's surface."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.commands.app import app, parse_ports
from pipeline.errors import SpecError

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("airflow", "mlflow", "torch", "vllm", "great_expectations", "httpx", "supervisor")
WITH_EXAMPLE = [
    "up",
    "status",
    "audit",
    "trace",
    "fleet",
    "release",
    "promote",
    "rollback",
    "chat",
    "logs",
    "validate",
    "plan",
    "init",
]


def test_help_lists_every_command() -> None:
    """The ones that the README names."""
    said = CliRunner().invoke(app, ["--help"]).output
    for command in [
        "up",
        "down",
        "status",
        "fleet",
        "rollout",
        "release",
        "promote",
        "rollback",
        "chat",
        "logs",
        "doctor",
        "validate",
        "plan",
        "demo",
        "init",
        "audit",
        "signing",
        "trace",
    ]:
        assert f" {command} " in said


@pytest.mark.parametrize("command", WITH_EXAMPLE)
def test_the_help_of_a_command_has_an_example(command: str) -> None:
    """Something to copy."""
    assert f"slipway {command}" in CliRunner().invoke(app, [command, "--help"]).output


def test_the_command_line_imports_nothing_heavy() -> None:
    """So `--help` and completion answer at once."""
    code = "import sys, pipeline.commands.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {module.partition(".")[0] for module in done.stdout.split()} & set(HEAVY)


def test_a_wrong_recipe_ends_with_its_exit_code_and_the_field(tmp_path: Path) -> None:
    """The same words as in the release's first task."""
    command = [str(ROOT / "slipway"), "validate", "demo", "--set", "finetune.epoch=2"]
    environment = {**os.environ, "SLIPWAY_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 64
    assert "finetune.epoch" in done.stderr
    assert "epochs" in done.stderr


def test_ports_are_part_and_number() -> None:
    """As `--port` takes them."""
    assert parse_ports(["airflow=8080", "mlflow=5000"]) == {"airflow": 8080, "mlflow": 5000}


@pytest.mark.parametrize("wrong", ["airflow", "airflow=", "airflow=many", "airflow=0", "airflow=65536"])
def test_what_is_no_port_is_refused(wrong: str) -> None:
    """With what was expected."""
    with pytest.raises(SpecError, match="PART=NUMBER"):
        parse_ports([wrong])


@pytest.mark.parametrize(
    ("command", "instead"),
    [("up", "docker compose up --wait"), ("down", "down"), ("doctor", "docker compose ps"), ("init", "./slipway init")],
)
def test_in_docker_compose_the_local_stacks_commands_say_what_to_do_instead(
    tmp_path: Path, command: str, instead: str
) -> None:
    """There is nothing of it there."""
    environment = {**os.environ, "SLIPWAY_HOME": str(tmp_path), "SLIPWAY_SECRETS": str(tmp_path)}
    done = subprocess.run(
        [str(ROOT / "slipway"), command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 64
    assert instead in done.stderr


def test_processes_that_it_starts_keep_their_compiled_modules(tmp_path: Path) -> None:
    """Whatever the caller has set; a Python that tells of its environment stands for the real one."""
    python = tmp_path / "control" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nenv\n")
    python.chmod(0o755)
    environment = {**os.environ, "SLIPWAY_VENVS": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    said = subprocess.run([str(ROOT / "slipway")], env=environment, capture_output=True, text=True, check=True).stdout
    assert "SLIPWAY_VENVS" in said
    assert "PYTHONDONTWRITEBYTECODE" not in said
