"""One rollout with real vLLM replicas on a tiny model."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_rig import MODEL, Rig

from pipeline import settings
from pipeline.fleet.replicas import Replicas, VllmEngine

pytestmark = pytest.mark.integration


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A fleet whose replicas are vLLM."""
    rig = Rig(tmp_path)
    python = settings.load().python_path("serve")
    made = tmp_path / "made"
    subprocess.run(
        [str(python), str(settings.ROOT / "tests/tiny_llama.py"), str(made)], check=True, capture_output=True
    )
    rig.fleet.replicas = Replicas(rig.supervisor, VllmEngine(rig.layout, python))
    rig.fleet.fetch_bundle = lambda version: made / "model"
    rig.up()
    rig.registry.configure(replicas=1, ready_timeout_s=400.0, kv_cache_mib=32, max_model_len=64)
    yield rig
    rig.supervisor.stop()


def test_a_real_engine_is_rolled_out_and_says_its_version(rig: Rig) -> None:
    """Streams included; the engine's other paths stay closed."""
    results = rig.roll_out("1")
    assert [result.outcome for result in results] == ["done", "done", "healthy", "done", "done"], rig.said
    answer = rig.ask()
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-slipway-version"] == "1"
    assert answer.json()["model"] == MODEL
    assert rig.ask("nobody").status_code == 404
