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
