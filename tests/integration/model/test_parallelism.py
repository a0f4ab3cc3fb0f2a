"""Every kind of parallelism computes what one process computes, and leaves a model that transformers loads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import STEPS, VOCABULARY, Trained, small, train_on_ranks, train_plainly, write_model, write_tokens

pytestmark = pytest.mark.integration

AGREE = 1e-5
"""Between losses, in nats, in fp32."""

MODES: dict[str, dict[str, Any]] = {
    "one rank without ZeRO": {"nodes": 1, "parallelism": {"zero": 0}},
    "ZeRO-0 on two": {"nodes": 2, "parallelism": {"zero": 0}},
    "ZeRO-1 on two": {"nodes": 2, "parallelism": {"zero": 1}},
    "ZeRO-2 on two, accumulating": {"nodes": 2, "parallelism": {"zero": 2}, "gradient_accumulation": 2},
    "ZeRO-3 on two": {"nodes": 2, "parallelism": {"zero": 3}},
    "ZeRO-3 on two with checkpointed activations": {
        "nodes": 2, "parallelism": {"zero": 3}, "activation_checkpointing": True,
    },
    "tensor 2": {"nodes": 2, "parallelism": {"tensor": 2}},
    "tensor 2 × data 2 with ZeRO-2": {"nodes": 4, "parallelism": {"tensor": 2, "zero": 2}},
    "pipeline 2, accumulating": {"nodes": 2, "parallelism": {"pipeline": 2}, "gradient_accumulation": 4},
    "pipeline 2 × data 2": {"nodes": 4, "parallelism": {"pipeline": 2}, "gradient_accumulation": 2},
    "sequence 2": {"nodes": 2, "parallelism": {"sequence": 2}},
    "sequence 2 × data 2 with ZeRO-3": {"nodes": 4, "parallelism": {"sequence": 2, "zero": 3}},
}  # fmt: skip

KINDS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "Qwen2, tied, in a pipeline": ("Qwen2", True, {"parallelism": {"pipeline": 2}, "gradient_accumulation": 2}),
    "Qwen2, tied, with packed rows in a pipeline": (
        "Qwen2", True, {"parallelism": {"pipeline": 2}, "batching": "packing", "max_seq_len": 48},
    ),
    "Llama, tied, in slices": ("Llama", True, {"parallelism": {"tensor": 2}}),
    "Qwen3, in slices": ("Qwen3", False, {"parallelism": {"tensor": 2}}),
    "Qwen3, tied, with ZeRO-3 and all of it offloaded": (
        "Qwen3", True, {"parallelism": {"zero": 3}, "offload": {"optimizer": True, "parameters": True}},
    ),
    "Qwen2, in parts of sequences": ("Qwen2", False, {"parallelism": {"sequence": 2}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("data") / "tokens")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def alone(llama: Path, tokens: Path) -> tuple[list[float], Any]:
    """The losses of one process without DeepSpeed, and its model."""
    losses, trained = train_plainly(small(), llama, tokens)
    assert len(losses) == STEPS
    return losses, trained.model.eval()


def same_logits(trained: Trained, model: Any) -> None:
    ids = torch.randint(1, VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(trained.logits(ids), model(input_ids=ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_it_learns_what_one_process_learns(
    mode: str, alone: tuple[list[float], Any], llama: Path, tokens: Path, tmp_path: Path
) -> None:
    """The losses of 20 steps agree to 1e-5, and the saved model gives the same logits."""
    losses, model = alone
    trained = train_on_ranks(small(**MODES[mode]), llama, tokens, tmp_path / "home")
    assert trained.losses == pytest.approx(losses, abs=AGREE)
    same_logits(trained, model)


@pytest.mark.parametrize("case", KINDS)
def test_other_kinds_of_model_learn_the_same_too(case: str, tokens: Path, tmp_path: Path) -> None:
    """Qwen, tied embeddings and packed rows."""
    kind, tied, settings = KINDS[case]
    base = write_model(tmp_path / "model", kind, tied=tied)
    spread = small(nodes=2, **settings)
    alone = small(**{name: settings[name] for name in ("batching", "max_seq_len") if name in settings})
    losses, plain = train_plainly(alone, base, tokens)
    trained = train_on_ranks(spread, base, tokens, tmp_path / "home")
    assert trained.losses == pytest.approx(losses, abs=AGREE)
    same_logits(trained, plain.model.eval())


PRECISIONS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "bf16 with ZeRO-3": {"precision": "bf16", "parallelism": {"zero": 3}},
    "fp16": {"precision": "fp16"},
    "gradients exchanged in bf16": {"communication": {"dtype": "bf16"}},
}


@pytest.mark.parametrize("case", PRECISIONS)
def test_lower_precisions_stay_close_to_fp32(
    case: str, alone: tuple[list[float], Any], llama: Path, tokens: Path, tmp_path: Path
) -> None:
    """Within 2 % of the loss at every step; fp16 does not lose the steps that its loss scale makes too large."""
    trained = train_on_ranks(small(nodes=2, **PRECISIONS[case]), llama, tokens, tmp_path / "home")
    assert trained.losses == pytest.approx(alone[0], rel=0.02)


def test_a_model_trained_in_bf16_on_packed_rows_is_saved_in_bf16(llama: Path, tokens: Path, tmp_path: Path) -> None:
    """Every weight of it, after a loss that went down."""
    from safetensors import safe_open

    settings = small(nodes=2, precision="bf16", batching="packing", max_seq_len=48)
    trained = train_on_ranks(settings, llama, tokens, tmp_path / "home")
    assert trained.losses[-1] < trained.losses[0]
    with safe_open(trained.folder / "out" / "model.safetensors", framework="pt") as weights:
        assert {str(weights.get_tensor(name).dtype) for name in weights.keys()} == {"torch.bfloat16"}  # noqa: SIM118
