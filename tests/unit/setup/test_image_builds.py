"""What `make images` says, without Docker: the builds themselves are tests/integration/docker/test_images.py."""

import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.settings import ROOT

SETUP = ROOT / "infra" / "setup"
DOCKERFILES = sorted((ROOT / "infra" / "images").glob("*.Dockerfile"))


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program, imported as it is run: from its own folder."""
    monkeypatch.syspath_prepend(str(SETUP))
    import images

    return images


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH; a test puts a `docker` of its own there."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin" / "docker"


def pretend(docker: Path, script: str) -> None:
    docker.write_text(f"#!/bin/sh\n{script}\n")
    docker.chmod(docker.stat().st_mode | stat.S_IEXEC)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "there is no docker on PATH: install Docker with buildx"),
        ("echo cannot connect >&2; exit 1", "engine does not answer: start it.*\n  cannot connect"),
        ('[ "$1" = buildx ] && exit 1; exit 0', "docker has no buildx.*install docker-buildx"),
    ],
)
def test_a_missing_part_is_named_with_what_to_do(images: Any, docker: Path, script: str | None, message: str) -> None:
    """Before anything is built."""
    if script:
        pretend(docker, script)
    with pytest.raises(images.BuildError, match=message):
        images.check_docker()


def test_a_base_image_that_cannot_be_had_is_named(images: Any, docker: Path) -> None:
    """With how to name another one."""
    pretend(docker, "echo no such host >&2; exit 1")
    with pytest.raises(images.BuildError, match=r"base image python:9 is not here.*BASE_IMAGE=…`\n  no such host"):
        images.check_base_image("python:9")


def test_a_failed_build_ends_with_what_docker_said(images: Any, docker: Path, tmp_path: Path) -> None:
    """And where the rest is."""
    pretend(docker, "echo step 1; echo no such package >&2; exit 3")
    with pytest.raises(images.BuildError, match=r"(?s)could not be built; the whole log is .*no such package"):
        images.run("slipway/control:1", [str(docker)], tmp_path / "log")


def test_the_table_has_a_line_an_image(images: Any) -> None:
    """Name, id, size, seconds."""
    built = [
        images.Built(name=f"slipway/{name}:1-cpu", image_id="sha256:0123456789abcdef", size_bytes=size, seconds=9.7)
        for name, size in (("control", 1_234_000_000), ("serve", 99_000_000))
    ]
    assert images.table(built).splitlines() == [
        "image                  id                size  time",
        "slipway/control:1-cpu  0123456789ab  1,234 MB  10 s",
        "slipway/serve:1-cpu    0123456789ab     99 MB  10 s",
    ]


def test_the_addresses_of_a_build_are_gone_after_it(images: Any) -> None:
    """They may hold a password, and nobody else may read them meanwhile."""
    with images.secrets({"index-url": "https://user:secret@mirror"}) as options:
        conf = Path(re.sub(".*src=", "", options[0]))
        assert "secret" in conf.read_text()
        assert conf.stat().st_mode & 0o077 == 0
    assert not conf.exists()


def test_the_source_is_named_without_a_password(images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A label is for everybody to read."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    address = ["git", "-C", str(tmp_path), "remote", "add", "origin", "https://user:secret@host/slipway.git"]
    subprocess.run(address, check=True)
    monkeypatch.setattr(images, "ROOT", tmp_path)

    assert images.source() == "https://host/slipway.git"


def test_an_image_that_does_not_exist_is_refused() -> None:
    """With those that do."""
    command = [sys.executable, str(SETUP / "images.py"), "gpu"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert "there is no image gpu, expected control, model, serve" in done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_a_build_needs_no_registry_but_the_base_images(path: Path) -> None:
    """Only the base image is pulled: no frontend is, and everything else is made here."""
    text = path.read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert set(bases) == {"scratch", "${BASE_IMAGE}"}
    assert "ARG BASE_IMAGE=python:3.11-slim-bookworm" in text
    assert "# syntax" not in text


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_is_not_roots(path: Path) -> None:
    """A container without `--user` runs as one who owns nothing."""
    assert re.search(r"^USER slipway$", path.read_text(), re.MULTILINE)
    assert "--uid 10001" in path.read_text()


def test_there_is_a_list_for_cuda_wherever_torch_is_used() -> None:
    """With the same torch, so that both variants run the same code."""
    for name in ("model", "serve"):
        lists = [(ROOT / "infra" / "requirements" / f"{name}{end}.txt").read_text() for end in ("", "-cuda")]
        torch = [re.search(r"^torch==(\S+)$", text, re.MULTILINE) for text in lists]
        assert all(torch)
        assert len({found[1] for found in torch if found}) == 1
