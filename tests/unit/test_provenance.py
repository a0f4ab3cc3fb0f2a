"""Where an artifact says it comes from."""

import subprocess
from pathlib import Path

import pytest

from pipeline import __version__
from pipeline.contracts.base import ArtifactRef, FileRef
from pipeline.contracts.recipe import Validation
from pipeline.contracts.specs import ValidateSpec
from pipeline.provenance import code_version, environment_digest, input_digests


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
    """As in an image."""
    monkeypatch.setenv("PATH", "")

    assert code_version(tmp_path) == __version__


def test_the_digest_of_the_environment_is_stable() -> None:
    """Within one environment."""
    before = environment_digest()
    environment_digest.cache_clear()

    assert environment_digest() == before


def test_what_a_half_removed_package_left_behind_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of metadata without a name."""
    before = environment_digest()
    environment_digest.cache_clear()
    (tmp_path / "gone-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))

    assert environment_digest() == before


def test_the_inputs_of_a_spec_are_found_at_any_depth() -> None:
    """Each once, and what is left out is left out."""
    train, suite = (FileRef(uri=f"file:///{n}", digest=n * 64, size_bytes=1) for n in "12")
    spec = ValidateSpec(train=train, eval=train, rules=Validation(), suite=suite)

    assert input_digests(spec) == {"1" * 64, "2" * 64}
    assert input_digests({"a": [(ArtifactRef(uri="file:///x", digest="3" * 64),)]}) == {"3" * 64}
