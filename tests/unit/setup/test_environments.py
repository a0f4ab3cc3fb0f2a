"""When an environment is made anew, and when it is left alone."""

import json
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[3] / "infra" / "setup"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """An environment with lists of its own."""
    monkeypatch.syspath_prepend(str(SETUP))
    import environments

    monkeypatch.setattr(environments, "VENVS", tmp_path / "venvs")
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    (tmp_path / "control.txt").write_text("one==1\n")
    (tmp_path / "dev.txt").write_text("two==2\n")
    made = environments.Environment("control", "dev.txt")
    made.python.parent.mkdir(parents=True)
    made.python.touch()
    return made


def stamp(environment: object, **lists: bool) -> None:
    wanted = environment.wanted(**lists)  # type: ignore[attr-defined]
    (environment.path / "slipway-setup.json").write_text(json.dumps(wanted))  # type: ignore[attr-defined]


def test_an_environment_without_a_stamp_is_made(environment: object) -> None:
    """It may be half finished."""
    assert not environment.is_current(tests=False)  # type: ignore[attr-defined]


def test_a_stamped_environment_is_left_alone(environment: object) -> None:
    """Until tests are asked for."""
    stamp(environment, tests=False)
    assert environment.is_current(tests=False)  # type: ignore[attr-defined]
    assert not environment.is_current(tests=True)  # type: ignore[attr-defined]


def test_an_environment_for_tests_serves_running_too(environment: object) -> None:
    """So `make demo` after `make test` installs nothing."""
    stamp(environment, tests=True)
    assert environment.is_current(tests=False)  # type: ignore[attr-defined]


def test_a_changed_list_makes_it_anew(environment: object, tmp_path: Path) -> None:
    """The stamp holds the list's digest."""
    stamp(environment, tests=False)
    (tmp_path / "control.txt").write_text("one==2\n")
    assert not environment.is_current(tests=False)  # type: ignore[attr-defined]


def test_a_vanished_interpreter_makes_it_anew(environment: object) -> None:
    """A stamp alone runs nothing."""
    stamp(environment, tests=False)
    environment.python.unlink()  # type: ignore[attr-defined]
    assert not environment.is_current(tests=False)  # type: ignore[attr-defined]


def test_a_variant_takes_its_own_list_where_there_is_one(environment: object, tmp_path: Path) -> None:
    """Most packages know nothing of GPUs, and the empty distribution stands in for the CPU's engine alone."""
    import environments

    (tmp_path / "serve.txt").write_text("torch==1\n")
    (tmp_path / "serve-cuda.txt").write_text("torch==1\nnvidia-nccl==2\n")
    serve, cuda = (environments.Environment("serve", "t", "alias", variant=name) for name in ("cpu", "cuda"))

    assert (serve.lock.name, cuda.lock.name) == ("serve.txt", "serve-cuda.txt")
    assert (serve.local_folder, cuda.local_folder) == (tmp_path / "alias", None)
    assert environments.Environment("control", "t", variant="cuda").lock.name == "control.txt"


@pytest.mark.parametrize(
    ("variant", "version", "message"),
    [
        ("cpu", "2.0+cpu", None),
        ("cuda", "2.0+cu130", None),
        ("cpu", "2.0+cu130", "no CPU build"),
        ("cuda", "2.0+cpu", "expected one for CUDA"),
    ],
)
def test_a_torch_for_the_other_processor_is_refused(
    environment: object, tmp_path: Path, variant: str, version: str, message: str | None
) -> None:
    """It could not be imported, or would leave the GPU idle."""
    import environments

    made = environments.Environment("model", "t", variant=variant, place=tmp_path / "venv")
    file = made.path / "lib" / "python3.11" / "site-packages" / "torch" / "version.py"
    file.parent.mkdir(parents=True)
    file.write_text(f"__version__ = '{version}'\n")

    if message:
        with pytest.raises(environments.SetupError, match=message):
            environments.check_torch(made)
    else:
        environments.check_torch(made)
