"""What a step sees of its job."""

import time
from pathlib import Path

import pytest

from pipeline import artifacts, settings
from pipeline.artifacts.uris import file_uri
from pipeline.contracts.base import ModelRef
from pipeline.errors import IntegrityError
from pipeline.job import Job
from tests.artifact_samples import KEY, manifest_of, write_files


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Of a validate step with a home of its own."""
    return Job(
        step="validate",
        key=KEY,
        out_uri=f"{file_uri(tmp_path / 'store')}/validate/{KEY}",
        settings=settings.load({"SLIPWAY_HOME": str(tmp_path / "home")}),
    )


@pytest.mark.parametrize(
    ("done", "total", "figures", "line"),
    [
        (0, 800, {}, "progress 0/800 0%\n"),
        (120, 800, {"loss": 0.73149}, "progress 120/800 15% eta=170s loss=0.7315\n"),
        (1_234_567, 10_000_000, {"rows": 12}, "progress 1234567/10000000 12% eta=213s rows=12\n"),
        (0.5, 3, {}, "progress 0.50/3 17% eta=150s\n"),
        (9, 8, {}, "progress 9/8 100% eta=0s\n"),
        (0, 0, {}, "progress 0/0 100%\n"),
    ],
)
def test_a_progress_line_has_one_form(
    done: float,
    total: float,
    figures: dict[str, float],
    line: str,
    job: Job,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The operator and the live view read it. Here, 30 seconds into the job."""
    monkeypatch.setattr(time, "monotonic", lambda: job._started + 30)

    job.progress(done, total, **figures)

    assert capsys.readouterr().out == line


def test_a_report_of_refused_data_is_kept_in_one_folder_and_is_no_artifact(job: Job, tmp_path: Path) -> None:
    """Its pages can refer to each other, and a second refusal with other rows does not overwrite it."""
    folder = write_files(tmp_path / "report", {"report.html": 10, "report.json": 10})

    uri = job.publish_report(folder)
    write_files(folder, {"report.html": 10}, seed=b"other")

    assert (Path(uri.removeprefix("file://")) / "report.json").is_file()
    assert job.publish_report(folder) != uri
    assert artifacts.find_manifest(job.out_uri) is None


def test_a_model_folder_inside_an_artifact_is_fetched(job: Job, tmp_path: Path) -> None:
    """And a folder without a model is refused."""
    folder = write_files(tmp_path / "made", {"w8a8/config.json": 2, "notes/a": 1})
    published = artifacts.publish(job.out_uri, folder, manifest_of(folder)).ref(job.out_uri)

    assert (job.fetch_model(ModelRef(artifact=published, path="w8a8")) / "config.json").is_file()
    with pytest.raises(IntegrityError, match="no model at 'notes'"):
        job.fetch_model(ModelRef(artifact=published, path="notes"))
