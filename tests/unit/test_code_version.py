"""Which code an artifact says it was made by."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import __version__
from pipeline.code_version import ROOT, code_version


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    return subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True
    ).stdout


def test_in_a_checkout_the_code_version_names_the_commit(tmp_path: Path) -> None:
    """And says whether files were edited since."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    commit = git(tmp_path, "rev-parse", "--short=12", "HEAD").strip()

    assert code_version(tmp_path) == f"{__version__}+g{commit}"
    code_version.cache_clear()
    (tmp_path / "a").write_text("2")
    assert code_version(tmp_path) == f"{__version__}+g{commit}.dirty"


def test_outside_a_checkout_of_our_own_it_is_the_release(tmp_path: Path) -> None:
    """The commit of somebody else's repository around an installed tree says nothing about our code."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "installed").mkdir()

    assert code_version(tmp_path / "installed") == __version__
    assert code_version(tmp_path) == __version__  # no commit yet


def test_without_git_it_is_the_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that never heard of it."""
    monkeypatch.setenv("PATH", "")

    assert code_version(tmp_path) == __version__


def test_in_an_image_it_is_what_the_build_wrote_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no git, and no checkout."""
    monkeypatch.setenv("PATH", "")
    (tmp_path / "CODE_VERSION").write_text("0.1.0+g1a2b3c4d5e6f\n")

    assert code_version(tmp_path) == "0.1.0+g1a2b3c4d5e6f"


def test_an_image_built_without_a_version_says_the_release(tmp_path: Path) -> None:
    """By a plain `docker build`, which knows no commit."""
    (tmp_path / "CODE_VERSION").write_text("\n")

    assert code_version(tmp_path) == __version__


def test_set_up_can_ask_before_anything_is_installed() -> None:
    """A Python without site-packages answers."""
    command = [sys.executable, "-I", "-S", "-c", "import sys; sys.path.insert(0, '.'); import runpy;"]
    command[-1] += "runpy.run_module('pipeline.code_version', run_name='__main__')"
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert answer.startswith(__version__)
