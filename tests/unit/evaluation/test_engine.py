"""How much key-value cache the engine is given."""

import json

import pytest

from pipeline.evaluation.engine import KV_CACHE_BYTES, MAX_SEQUENCES, kv_cache


@pytest.fixture
def model_path(tmp_path):
    def write(**sizes):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}))
        return tmp_path

    return write


def test_a_small_model_answers_as_many_rows_at_once_as_allowed(model_path):
    """Two layers, two heads of 32: 1 KiB a token, in blocks of 128 tokens; 64 × 2 blocks and one more."""
    path = model_path(hidden_size=128, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2)
    assert kv_cache(path, 256) == (MAX_SEQUENCES, (64 * 2 + 1) * 128 * 1024)


def test_a_large_model_answers_fewer_rows_at_once_within_the_budget(model_path):
    """32 layers, 8 heads of 128: 256 KiB a token, 1 GiB a sequence of 4,096 tokens."""
    path = model_path(hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, num_hidden_layers=32)
    sequences, size_bytes = kv_cache(path, 2048)
    assert sequences == 2
    assert size_bytes <= KV_CACHE_BYTES * 1.1


def test_a_model_whose_single_sequence_exceeds_the_budget_still_answers(model_path):
    """One row at a time, in all the memory that it needs."""
    path = model_path(hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, num_hidden_layers=32)
    sequences, size_bytes = kv_cache(path, 8192)
    assert sequences == 1
    assert size_bytes > KV_CACHE_BYTES
