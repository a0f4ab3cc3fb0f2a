"""Which shapes the 4-bit form can take."""

import pytest

from pipeline.compression.export import weights_size_bytes
from pipeline.compression.schemes import group_size
from pipeline.errors import SpecError


@pytest.mark.parametrize(
    ("sizes", "expected"), [((128, 384), 128), ((576, 1536), 64), ((64, 128), 64), ((96, 352), 32), ((896, 4864), 128)]
)
def test_the_largest_group_that_divides_every_layer_is_taken(sizes, expected):
    """Fewer scales make a smaller model."""
    assert group_size({str(size): size for size in sizes}) == expected


def test_a_layer_that_the_kernel_cannot_take_is_named():
    """With its size, what is expected, and what to do."""
    with pytest.raises(SpecError, match=r"model.layers.0.mlp.down_proj has 344 inputs, expected a multiple of 32"):
        group_size({"model.layers.0.self_attn.q_proj": 128, "model.layers.0.mlp.down_proj": 344})


def test_the_size_of_a_model_is_that_of_its_weights(tmp_path):
    """All shards, and nothing else."""
    (tmp_path / "model-1.safetensors").write_bytes(b"12345")
    (tmp_path / "model-2.safetensors").write_bytes(b"123")
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    assert weights_size_bytes(tmp_path) == 8
