"""What a plan says of memory is what a training takes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import small, train_on_ranks

from pipeline.training.tokens import TokenWriter

pytestmark = pytest.mark.integration

WITHIN = 0.15
"""Of what is measured."""
STEPS = 2
SEQUENCE = 128

MODELS: dict[str, dict[str, Any]] = {
    "llama 23 M": {
        "model_type": "llama", "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1536,
        "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "llama 37 M, large vocabulary": {
        "model_type": "llama", "vocab_size": 16000, "hidden_size": 768, "intermediate_size": 2048,
        "num_hidden_layers": 4, "num_attention_heads": 12, "num_key_value_heads": 4, "tie_word_embeddings": True,
    },
    "qwen3 11 M, deep": {
        "model_type": "qwen3", "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32,
        "tie_word_embeddings": True,
    },
    "llama 48 M, wide": {
        "model_type": "llama", "vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 2, "num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip

CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "ZeRO-0 on one": ("llama 23 M", 4, {"parallelism": {"zero": 0}}),
    "ZeRO-1 on two": ("llama 37 M, large vocabulary", 4, {"nodes": 2, "parallelism": {"zero": 1}}),
    "ZeRO-2 on two, activations again": (
        "qwen3 11 M, deep", 16, {"nodes": 2, "parallelism": {"zero": 2}, "activation_checkpointing": True},
    ),
    "ZeRO-3 on two": ("llama 48 M, wide", 4, {"nodes": 2, "parallelism": {"zero": 3}}),
    "ZeRO-1 on two, with checkpoints": (
        "llama 48 M, wide", 4, {"nodes": 2, "parallelism": {"zero": 1}, "checkpoint_every_steps": 1},
    ),
}  # fmt: skip


def write_rows(folder: Path, *, rows: int, vocabulary: int) -> Path:
    """Random rows, all as long as a sequence may be."""
    ids = np.random.default_rng(1).integers(1, vocabulary, size=rows * SEQUENCE).astype(np.int32)
    writer = TokenWriter(folder)
    writer.add(ids, np.ones(len(ids), dtype=bool), np.full(rows, SEQUENCE, dtype=np.int32))
    writer.close()
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_rank_takes_the_memory_that_was_planned(case: str, tmp_path: Path) -> None:
    """Within 15 %, of the hundreds of MB that it takes beside its libraries, as the manifest then says."""
    name, batch_size, changes = CASES[case]
    config = {**MODELS[name], "max_position_embeddings": SEQUENCE, "pad_token_id": 0}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    rows = write_rows(tmp_path / "tokens", rows=batch_size * STEPS, vocabulary=config["vocab_size"])
    settings = small(batch_size=batch_size, max_seq_len=SEQUENCE, **changes)

    train_on_ranks(settings, tmp_path / "model", rows, tmp_path / "run", fresh=True)

    figures = json.loads((tmp_path / "run" / "outcome.json").read_text())["figures"]
    print(case, figures)
    assert figures["measured_memory_mb"] > 300
    assert figures["predicted_memory_mb"] == pytest.approx(figures["measured_memory_mb"], rel=WITHIN)
