"""How many operations a step takes, and what they are told against."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from pipeline.contracts.finetune import Finetune
from pipeline.training import speeds
from pipeline.training.model_size import ModelSize
from pipeline.training.speeds import Speeds, gemm_flops_per_s
from pipeline.training.tokens import TokenFile, TokenWriter
from pipeline.training.usage import OF_GEMM, OF_PEAK, Utilization, memory_bytes

SIZE = ModelSize(weights=1000, head=300, layers=2, width=8, linear=(20, 10))
SHAPE = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    """Rows of 4, 6 and 5 tokens, whose last two are the answer."""
    writer = TokenWriter(tmp_path)
    for length in (4, 6, 5):
        writer.add(np.ones(length, dtype=np.int32), np.arange(length) >= length - 2, np.array([length]))
    writer.close()
    return TokenFile(tmp_path)


def test_a_models_multiplications_are_counted_by_its_linear_layers() -> None:
    """Of a Llama: four maps of attention, with fewer keys and values than queries, and three of the feed-forward."""
    size = ModelSize.of(LlamaForCausalLM(LlamaConfig(**SHAPE)))
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96
    assert size == ModelSize(weights=3 * layer, head=100 * 64, layers=3, width=64, linear=(96, 64))


def test_embeddings_that_are_the_output_layer_too_count_once() -> None:
    """As the output layer; a head may be wider than the model's size by their number."""
    tied = Qwen3Config(**SHAPE, head_dim=32, tie_word_embeddings=True)
    size = ModelSize.of(Qwen3ForCausalLM(tied))
    assert (size.head, size.width) == (6400, 128)


def test_a_steps_operations_are_those_of_the_formula() -> None:
    """6 a weight and token, 12 · layers · width · length a token for attention; with LoRA 4 a frozen weight."""
    lengths, counted = np.array([10, 20]), np.array([3, 4])
    attention = 12 * 2 * 8 * (10 * 10 + 20 * 20)
    assert SIZE.step_flops(lengths, counted) == 6 * (1000 * 30 + 300 * 7) + attention
    assert SIZE.step_flops(lengths, counted, frozen=True) == 4 * (1000 * 30 + 300 * 7) + attention


@pytest.mark.parametrize(("prompt_weight", "counted"), [(0.0, [2, 2]), (0.1, [3, 4])])
def test_logits_count_for_the_tokens_that_count_in_the_loss(
    tokens: TokenFile, prompt_weight: float, counted: list[int]
) -> None:
    """The answers' alone, or all but each row's first; padding and packing change nothing."""
    settings = Finetune(nodes=1, prompt_loss_weight=prompt_weight)
    use = Utilization(SIZE, tokens, settings, OF_GEMM, 1e6)
    expected = SIZE.step_flops(np.array([4, 5]), np.array(counted))
    assert use.flops([(0,), (2,)]) == expected
    assert use.flops([(0, 2)]) == expected
    assert use.of([[(0,), (2,)], [(0, 2)]], seconds=2.0) == pytest.approx(2 * expected / 2.0 / 1e6)


def test_devices_are_held_against_their_peaks_if_all_are_known(tokens: TokenFile) -> None:
    """Else against what was measured, under another name."""
    settings = Finetune(nodes=2)
    known = Utilization.against(Speeds((3e12, 1e12), ()), SIZE, tokens, settings)
    other = Utilization.against(Speeds((3e12, 0.0), (2e12, 5e11)), SIZE, tokens, settings)
    assert (known.name, known.available) == (OF_PEAK, 4e12)
    assert (other.name, other.available) == (OF_GEMM, 2.5e12)


def test_products_of_matrices_take_as_long_as_they_have_operations() -> None:
    """A speed that cores can have, found in the time that was asked for, from no random number."""
    state = torch.get_rng_state()
    speed = gemm_flops_per_s((256, 256, 256), torch.float32, torch.device("cpu"), seconds=0.05)
    assert 1e8 < speed < 1e14
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("precision", "peak"), [("bf16", 989e12), ("fp16", 989e12), ("fp32", 67e12)])
def test_an_accelerators_peak_is_that_of_its_data_sheet(
    precision: str, peak: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the name that CUDA gives, and by the precision; 0 where no data sheet is known."""
    names: dict[str, Any] = {"name": "NVIDIA H200"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: names["name"])
    assert speeds.known_peak(precision) == peak
    names["name"] = "NVIDIA Unheard-Of"
    assert speeds.known_peak(precision) == 0.0


def test_memory_is_what_this_process_has_written_to() -> None:
    """It grows by what is allocated and filled."""
    before = memory_bytes()
    filled = np.ones(8_000_000)
    assert 55e6 < memory_bytes() - before < 80e6
    assert filled[-1] == 1
