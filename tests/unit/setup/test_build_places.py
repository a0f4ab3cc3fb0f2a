"""What an image's build is told about the places that packages come from."""

import configparser
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[3] / "infra" / "setup"


@pytest.fixture(autouse=True)
def setup_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The set-up programs import each other by name, as they do when they are run."""
    monkeypatch.syspath_prepend(str(SETUP))


def conf(settings: dict[str, str]) -> dict[str, str]:
    """The pip.conf of a build, read as pip reads it."""
    import build_places

    parser = configparser.RawConfigParser()
    parser.read_string(build_places.pip_conf(settings))
    return dict(parser["global"])


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A list of three packages."""
    path = tmp_path / "lock.txt"
    path.write_text("# a comment\ntorch==2.0\nJinja2==3.1\nruamel.yaml==0.18\n")
    return path


def wheel(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(name)
    return path


def linked(settings: dict[str, str], lock: Path, tmp_path: Path, variant: str = "cpu") -> set[str]:
    """The names that end up in a build's folder of wheels."""
    import build_places

    folder = tmp_path / f"context-{variant}"
    build_places.link_wheels(settings, lock, folder, variant=variant)
    return {path.name for path in folder.iterdir()}


def test_without_any_configuration_the_build_only_learns_where_its_wheels_are() -> None:
    """And uses the default index."""
    assert conf({}) == {"find-links": "/wheels"}


def test_addresses_go_along_and_folders_stay() -> None:
    """A build sees no folder of the machine."""
    settings = {
        "index-url": "https://user:secret@mirror/simple",
        "extra-index-url": "file:///local/simple https://more/simple",
        "find-links": "/opt/wheels https://links/",
        "timeout": "300",
    }
    assert conf(settings) == {
        "index-url": "https://user:secret@mirror/simple",
        "extra-index-url": "https://more/simple",
        "find-links": "/wheels https://links/",
        "timeout": "300",
    }


def test_the_public_index_never_takes_a_local_ones_place() -> None:
    """The first of the others does, and where there is none, no index at all."""
    assert conf({"index-url": "file:///local/simple"}) == {"no-index": "true", "find-links": "/wheels"}
    assert conf({"index-url": "/local/simple", "extra-index-url": "https://a https://b"}) == {
        "index-url": "https://a",
        "extra-index-url": "https://b",
        "find-links": "/wheels",
    }


def test_a_certificate_becomes_a_secret(tmp_path: Path) -> None:
    """The configuration names the place where the build finds it."""
    import build_places

    settings = {"cert": str(tmp_path / "ca.pem")}
    assert conf(settings)["cert"] == "/run/secrets/pip_cert"
    assert build_places.secret_files(settings) == {"pip_cert": tmp_path / "ca.pem"}


def test_local_files_that_the_list_names_are_linked(lock: Path, tmp_path: Path) -> None:
    """Whatever way their names are written; other versions and packages stay out."""
    folder = tmp_path / "wheels"
    for name in (
        "torch-2.0+cpu-cp311-cp311-linux_x86_64.whl",
        "torch-2.1-cp311-cp311-linux_x86_64.whl",
        "jinja2-3.1-py3-none-any.whl",
        "ruamel_yaml-0.18.tar.gz",
        "other-1.0-py3-none-any.whl",
        "README",
    ):
        wheel(folder, name)

    assert linked({"find-links": str(folder)}, lock, tmp_path) == {
        "torch-2.0+cpu-cp311-cp311-linux_x86_64.whl",
        "jinja2-3.1-py3-none-any.whl",
        "ruamel_yaml-0.18.tar.gz",
    }


def test_a_build_for_cuda_finds_no_local_cpu_build(lock: Path, tmp_path: Path) -> None:
    """pip would prefer it to the normal build of the same version."""
    wheel(tmp_path / "wheels", "torch-2.0+cpu-cp311-cp311-linux_x86_64.whl")

    assert linked({"find-links": str(tmp_path / "wheels")}, lock, tmp_path, "cuda") == set()


def test_a_local_index_is_read_page_by_page(lock: Path, tmp_path: Path) -> None:
    """Its links are relative and percent-encoded."""
    wheel(tmp_path / "index" / "files", "torch-2.0+cpu-cp311-cp311-linux_x86_64.whl")
    page = tmp_path / "index" / "simple" / "torch" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text('<a href="../../files/torch-2.0%2Bcpu-cp311-cp311-linux_x86_64.whl#sha256=0">torch</a>')

    index = (tmp_path / "index" / "simple").as_uri()
    assert linked({"extra-index-url": index}, lock, tmp_path) == {"torch-2.0+cpu-cp311-cp311-linux_x86_64.whl"}


def test_what_the_list_no_longer_names_is_unlinked(lock: Path, tmp_path: Path) -> None:
    """And a file that changed is linked anew, so that the build's context is always what the list says."""
    folder = tmp_path / "wheels"
    first = wheel(folder, "torch-2.0-py3-none-any.whl")
    wheel(folder, "jinja2-3.1-py3-none-any.whl")
    linked({"find-links": str(folder)}, lock, tmp_path)
    first.unlink()
    first.write_text("rebuilt")
    lock.write_text("torch==2.0\n")

    assert linked({"find-links": str(folder)}, lock, tmp_path) == {"torch-2.0-py3-none-any.whl"}
    assert (tmp_path / "context-cpu" / "torch-2.0-py3-none-any.whl").read_text() == "rebuilt"


def test_what_is_set_for_uv_reaches_the_build_too() -> None:
    """A build sees none of its variables."""
    import pip_settings

    environ = {"UV_INDEX": "mine=https://mine/simple", "UV_FIND_LINKS": "/a,/b", "UV_DEFAULT_INDEX": "https://d/?x=1"}
    merged = pip_settings.with_uv({"extra-index-url": "https://theirs", "timeout": "9"}, environ)
    assert merged == {
        "index-url": "https://d/?x=1",
        "extra-index-url": "https://mine/simple",
        "find-links": "/a /b",
        "timeout": "9",
    }
