"""What may stand in a model bundle."""

from pathlib import Path

import pytest

from pipeline.artifacts.digests import folder_digest
from pipeline.errors import GateRefused
from pipeline.registry.bundles import inspect_bundle
from pipeline.registry.file_kinds import PNG_BEGIN, PNG_END
from tests.integration.finished_release import weights

CODE = (
    "pytorch_model.bin",
    "optimizer.pt",
    "scaler.pkl",
    "modeling_custom.py",
    "weights.npy",
    "model.ckpt",
    "run.sh",
    "x",
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A sound one."""
    files = {
        "config.json": b"{}",
        "model.safetensors": weights(1),
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "training/loss.png": PNG_BEGIN + PNG_END,
    }
    for name, data in files.items():
        path = tmp_path / "bundle" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "bundle"


def test_a_sound_bundle_is_digested_as_a_folder(bundle: Path) -> None:
    """The digest is the one that a replica computes over what it loads."""
    files, digest = inspect_bundle(bundle)
    assert len(files) == 5
    assert digest == folder_digest(bundle)


@pytest.mark.parametrize("name", CODE)
def test_a_file_that_may_run_code_is_refused_by_name(bundle: Path, name: str) -> None:
    """At any depth."""
    (bundle / "training" / name).write_bytes(b"\x80\x04.")
    with pytest.raises(GateRefused, match=f"training/{name} may not stand in a model bundle"):
        inspect_bundle(bundle)


def test_a_bundle_without_weights_is_refused(bundle: Path) -> None:
    """There is nothing to serve."""
    (bundle / "model.safetensors").unlink()
    with pytest.raises(GateRefused, match="holds no weights"):
        inspect_bundle(bundle)


def test_a_pickle_under_a_harmless_name_is_refused(bundle: Path) -> None:
    """The name alone proves nothing."""
    (bundle / "vocab.json").write_bytes(b"\x80\x04N.")
    with pytest.raises(GateRefused, match=r"vocab\.json is a pickle"):
        inspect_bundle(bundle)
