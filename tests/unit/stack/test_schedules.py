"""Generated DAG files follow the recipes' schedules."""

from pathlib import Path

import pytest
import yaml

from pipeline.stack.schedules import write_schedules


def recipe(folder: Path, name: str, **fields: object) -> Path:
    path = folder / f"{name}.yaml"
    content = {
        "name": name,
        "dataset": {"generate": {"kind": "support-intents"}},
        "base_model": {"init": {}},
        **fields,
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_recipe_with_a_schedule_gets_a_dag_file(tmp_path: Path) -> None:
    """The file names the schedule and the recipe, and is valid Python."""
    path = recipe(tmp_path, "nightly-intents", schedule="0 3 * * *")
    [written] = write_schedules(tmp_path, [path, recipe(tmp_path, "by-hand")])
    assert written == tmp_path / "dags" / "release_nightly_intents.py"
    text = written.read_text()
    assert "schedule='0 3 * * *'" in text
    assert str(path) in text
    compile(text, str(written), "exec")


def test_the_file_goes_with_the_schedule(tmp_path: Path) -> None:
    """A recipe that lost its schedule, or was deleted, loses its DAG."""
    path = recipe(tmp_path, "nightly", schedule="0 3 * * *")
    write_schedules(tmp_path, [path])
    assert write_schedules(tmp_path, [recipe(tmp_path, "nightly")]) == []


def test_writing_twice_changes_nothing(tmp_path: Path) -> None:
    """Airflow need not parse again what did not change."""
    path = recipe(tmp_path, "nightly", schedule="0 3 * * *")
    [written] = write_schedules(tmp_path, [path])
    before = written.stat().st_mtime_ns
    write_schedules(tmp_path, [path])
    assert written.stat().st_mtime_ns == before


def test_a_broken_recipe_keeps_its_dag(tmp_path: Path) -> None:
    """A slip in an edit must not silently end the nightly runs: the next run fails and says why."""
    path = recipe(tmp_path, "nightly", schedule="0 3 * * *")
    [written] = write_schedules(tmp_path, [path])
    path.write_text("name: [")
    assert write_schedules(tmp_path, [path]) == [written]


def test_of_two_schedules_of_one_name_the_second_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would share one DAG; it is said, and everything else comes up."""
    (tmp_path / "other").mkdir()
    first = recipe(tmp_path, "nightly", schedule="0 3 * * *")
    second = recipe(tmp_path / "other", "nightly", schedule="0 4 * * *")
    (written,) = write_schedules(tmp_path, [first, second])
    assert "0 3 * * *" in written.read_text()
    assert f"{second} gets no schedule" in capsys.readouterr().err
