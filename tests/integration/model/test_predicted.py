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
STEPS = 4
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
    "adapters on one": ("llama 48 M, wide", 8, {"method": "lora", "parallelism": {"zero": 0}}),
    "bf16 on two": ("llama 48 M, wide", 4, {"nodes": 2, "precision": "bf16"}),
    "slices on two": ("llama 48 M, wide", 4, {"nodes": 2, "parallelism": {"zero": 0, "tensor": 2}}),
    "stages on two": ("llama 23 M", 8, {"nodes": 2, "gradient_accumulation": 4, "parallelism": {"pipeline": 2}}),
    "parts of sequences on two": ("llama 23 M", 8, {"nodes": 2, "parallelism": {"sequence": 2}}),
    "preferences on two": ("llama 23 M", 4, {"nodes": 2, "method": "dpo", "prompt_loss_weight": 0}),
    "a teacher on one": ("llama 23 M", 4, {"method": "distill", "distill": {"teacher": "of this test"}}),
}  # fmt: skip
DRILLS = ("stages on two", "parts of sequences on two", "preferences on two", "slices on two")
TEACHER = {**MODELS["llama 37 M, large vocabulary"], "vocab_size": 4096}
"""34 M parameters in the words of "llama 23 M"."""


def write_rows(folder: Path, *, rows: int, vocabulary: int, pairs: bool) -> Path:
    """Random rows, all as long as a sequence may be."""
    lines = rows * (2 if pairs else 1)
    ids = np.random.default_rng(1).integers(1, vocabulary, size=(rows, lines // rows * SEQUENCE)).astype(np.int32)
    writer = TokenWriter(folder, pairs=pairs)
    for row in ids:
        writer.add(row, np.ones(len(row), dtype=bool), np.full(lines // rows, SEQUENCE, dtype=np.int32))
    writer.close()
    return folder


def write_model(folder: Path, sizes: dict[str, Any], *, weights: bool) -> Path:
    """A config.json; with `weights` in fp32, as what is not trained has them."""
    folder.mkdir()
    config = {**sizes, "max_position_embeddings": SEQUENCE, "pad_token_id": 0}
    if weights:
        import transformers

        transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).save_pretrained(folder)
    else:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.drill] if case in DRILLS else []) for case in CASES]
)
def test_a_rank_takes_the_memory_that_was_planned(case: str, tmp_path: Path) -> None:
    """Within 15 %, of the hundreds of MB that it takes beside its libraries, as the manifest then says."""
    name, batch_size, changes = CASES[case]
    settings = small(batch_size=batch_size, max_seq_len=SEQUENCE, **changes)
    adapters, pairs = settings.method == "lora", settings.method == "dpo"
    model = write_model(tmp_path / "model", MODELS[name], weights=adapters)
    words = MODELS[name]["vocab_size"]
    rows = write_rows(tmp_path / "tokens", rows=batch_size * STEPS, vocabulary=words, pairs=pairs)
    options: dict[str, Any] = {"fresh": not adapters}
    if settings.method == "distill":
        options["teacher_path"] = write_model(tmp_path / "teacher", TEACHER, weights=True)

    train_on_ranks(settings, model, rows, tmp_path / "run", **options)

    figures = json.loads((tmp_path / "run" / "outcome.json").read_text())["figures"]
    print(case, figures)
    assert figures["measured_memory_mb"] > 300
    assert figures["predicted_memory_mb"] == pytest.approx(figures["measured_memory_mb"], rel=WITHIN)
