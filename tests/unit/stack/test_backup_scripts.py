"""What the scripts that save and put back the stack in docker compose do with the home."""

import os
import subprocess
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.settings import ROOT
from pipeline.signing import keys
from pipeline.stack.layout import Layout

DOCKER = """#!/bin/sh
for last; do :; done
case "$*" in
*"--entrypoint sh "*) exec sh -c "$(printf %s "$last" | sed "s#/var/lib/slipway#$HOME_OF_TEST#g")" ;;
*) echo something ;;
esac
"""
"""Runs what the script runs in a container's shell, on the test's home; all else succeeds."""
FOLDERS = ("recipes", "data", "logs/airflow", "signing/trusted", "audit")


def run(name: str, home: Path, saved: Path) -> str:
    """What it says."""
    docker = home.parent / "bin" / "docker"
    docker.parent.mkdir(exist_ok=True)
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    variables = {"PATH": f"{docker.parent}:{os.environ['PATH']}", "HOME_OF_TEST": str(home)}
    script = [ROOT / "infra" / "compose" / name, saved]
    return subprocess.run(script, env=variables, check=True, capture_output=True, text=True).stdout


def make_home(path: Path) -> Path:
    for folder in FOLDERS:
        (path / folder).mkdir(parents=True)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_home(tmp_path / "home")


def keys_of(home: Path) -> Path:
    path = home / "fleet" / "doors" / "keys.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_clients_keep_their_keys_in_a_stack_that_is_put_back_elsewhere(home: Path, tmp_path: Path) -> None:
    """Nobody has them but their owners, so they cannot be made again."""
    keys_of(home).write_text("saved")
    run("backup.sh", home, tmp_path / "saved")
    elsewhere = make_home(tmp_path / "elsewhere")
    run("restore.sh", elsewhere, tmp_path / "saved")
    assert keys_of(elsewhere).read_text() == "saved"


def test_putting_back_an_older_backup_opens_the_door_to_nobody_who_was_revoked(home: Path, tmp_path: Path) -> None:
    """The keys that are there stay, and so does the audit log."""
    keys_of(home).write_text("old")
    (home / "audit" / "log.jsonl").write_text("old\n")
    run("backup.sh", home, tmp_path / "saved")
    keys_of(home).write_text("new")
    (home / "audit" / "log.jsonl").write_text("old\nnew\n")
    run("restore.sh", home, tmp_path / "saved")
    assert keys_of(home).read_text() == "new"
    assert (home / "audit" / "log.jsonl").read_text() == "old\nnew\n"


def test_a_home_without_clients_is_saved_and_put_back(home: Path, tmp_path: Path) -> None:
    """Nobody has made a key yet."""
    (home / "recipes" / "mine.yaml").write_text("mine")
    run("backup.sh", home, tmp_path / "saved")
    (home / "recipes" / "mine.yaml").unlink()
    run("restore.sh", home, tmp_path / "saved")
    assert (home / "recipes" / "mine.yaml").read_text() == "mine"


def test_a_key_that_was_distrusted_since_stays_distrusted(home: Path, tmp_path: Path) -> None:
    """The others that the backup brings are trusted again, whatever became of them; and somebody may trust it anew."""
    layout = Layout(home)
    old = keys.ensure(layout).public_key()
    new = keys.rotate(layout).public_key()
    run("backup.sh", home, tmp_path / "saved")
    keys.distrust(settings.load({"SLIPWAY_HOME": str(home)}), keys.key_id(old))
    (layout.trusted_keys_path / f"{keys.short(keys.key_id(new))}.pem").unlink()
    said = run("restore.sh", home, tmp_path / "saved")
    assert keys.trusted(layout).keys() == {keys.key_id(new)}
    assert "signing distrust KEY" in said
    keys.trust(layout, old)
    assert keys.trusted(layout).keys() == {keys.key_id(new)}
    keys.trust(layout, old, again=True)
    assert keys.trusted(layout).keys() == {keys.key_id(new), keys.key_id(old)}
