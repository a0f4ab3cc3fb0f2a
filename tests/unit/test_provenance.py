"""Where an artifact says it comes from."""

from pathlib import Path

import pytest

from pipeline import settings
from pipeline.contracts.base import ArtifactRef, FileRef
from pipeline.contracts.manifest import Manifest
from pipeline.contracts.recipe import Validation
from pipeline.contracts.specs import RolloutResult, RolloutSpec, ValidateSpec
from pipeline.job import Job
from pipeline.provenance import draft_manifest, environment_digest, input_digests
from tests.artifact_samples import manifest_of

ROLLOUT = RolloutSpec(name="bank", generation=1, phase="plan", request_id="test")
NOTHING_DONE = RolloutResult(name="bank", generation=1, phase="plan", outcome="nothing_to_do", reason="all well")


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


def test_a_manifest_names_the_image_outside_its_digest(tmp_path: Path) -> None:
    """So that the same spec gives the same digest as a process and as a container."""

    def made(environ: dict[str, str]) -> Manifest:
        home = {"SLIPWAY_HOME": str(tmp_path), **environ}
        job = Job(step="rollout", key="1" * 64, out_uri="file:///store/rollout/1", settings=settings.load(home))
        job.clear_staging()
        return draft_manifest(job, ROLLOUT, NOTHING_DONE, started_at="2026-01-01T00:00:00+00:00", duration_s=1.0)

    plain, contained = made({}), made({"SLIPWAY_IMAGE": "slipway/control@sha256:1"})

    assert (plain.image, contained.image) == (None, "slipway/control@sha256:1")
    assert plain.digest == contained.digest


def test_a_manifest_from_before_images_is_still_read(tmp_path: Path) -> None:
    """It names none."""
    (tmp_path / "a").write_text("1")
    old = manifest_of(tmp_path).model_dump(mode="json")
    del old["image"]

    assert Manifest.model_validate(old).image is None
