"""Where a home's steps run: who decides, what is kept, and what Airflow is told."""

from pathlib import Path

import pytest

from pipeline import settings
from pipeline.errors import SpecError, TransientError
from pipeline.settings import Settings
from pipeline.stack import jobs_part
from pipeline.stack.jobs_part import JobsPlace
from pipeline.stack.layout import Layout, write_json


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "home")
    layout.create()
    layout.choose_ports()
    return layout


@pytest.fixture(autouse=True)
def _no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks the Docker engine here gets no answer."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")


def configured(layout: Layout, **environ: str) -> Settings:
    return settings.load({"SLIPWAY_HOME": str(layout.home_path), **environ})


def in_containers(layout: Layout) -> None:
    """As `up --backend docker` leaves the home."""
    write_json(layout.home_path / "backend.json", JobsPlace(backend="docker", bridge_address="172.17.0.1"))


def test_steps_are_processes_unless_somebody_says_otherwise(layout: Layout) -> None:
    """And nothing is written down for it."""
    assert jobs_part.choose(layout, configured(layout)) == JobsPlace(backend="process")
    assert not (layout.home_path / "backend.json").exists()


def test_what_was_chosen_last_stays(layout: Layout) -> None:
    """For those who only look; `up` asks the engine again, whose address may have changed."""
    in_containers(layout)
    assert jobs_part.place_of(layout).backend == "docker"
    with pytest.raises(TransientError, match="Docker engine"):
        jobs_part.choose(layout, configured(layout))


def test_the_environment_counts_more_than_what_was_kept(layout: Layout) -> None:
    """And is kept in its turn."""
    in_containers(layout)
    jobs_part.choose(layout, configured(layout, SLIPWAY_BACKEND="process"))
    assert jobs_part.place_of(layout) == JobsPlace(backend="process", bridge_address=None)


def test_the_command_line_counts_most(layout: Layout) -> None:
    """`--backend process` asks no engine, whatever the environment says."""
    in_containers(layout)
    found = jobs_part.choose(layout, configured(layout, SLIPWAY_BACKEND="docker"), "process")
    assert found.backend == jobs_part.place_of(layout).backend == "process"


def test_without_an_engine_nothing_is_chosen(layout: Layout) -> None:
    """The message says how to look, and steps stay where they were."""
    with pytest.raises(TransientError, match="docker info"):
        jobs_part.choose(layout, configured(layout), "docker")
    assert jobs_part.place_of(layout).backend == "process"


@pytest.mark.parametrize("backend", ["agent", "kubernetes"])
def test_a_backend_that_the_local_stack_does_not_have_is_refused(layout: Layout, backend: str) -> None:
    """Naming it and those that there are."""
    with pytest.raises(SpecError, match=f"'{backend}', expected process or docker"):
        jobs_part.choose(layout, configured(layout), backend)


def test_airflow_is_told_the_backend_and_where_containers_find_mlflow(layout: Layout) -> None:
    """The machine's address as containers see it, at MLflow's own port; processes need none."""
    assert jobs_part.variables(layout) == {"SLIPWAY_BACKEND": "process"}
    in_containers(layout)
    assert jobs_part.variables(layout) == {
        "SLIPWAY_BACKEND": "docker",
        "SLIPWAY_JOBS_TRACKING_URI": f"http://172.17.0.1:{layout.ports().mlflow}",
    }


def test_processes_leave_no_container_to_end(layout: Layout) -> None:
    """So `down` needs no engine; where steps are containers it does, and says so."""
    assert jobs_part.end_containers(layout, configured(layout)) == 0
    in_containers(layout)
    with pytest.raises(TransientError, match="Docker engine"):
        jobs_part.end_containers(layout, configured(layout))


def test_a_damaged_record_is_named(layout: Layout) -> None:
    """With what to do about it."""
    path = layout.home_path / "backend.json"
    path.write_text('{"backend": "podman"}')
    with pytest.raises(SpecError, match=r"backend\.json is damaged"):
        jobs_part.place_of(layout)
