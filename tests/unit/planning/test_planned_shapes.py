"""Parameters counted from a config.json are those that the model is published with."""

from typing import Any

import pytest

from pipeline.contracts.recipe import InitModel
from pipeline.planning.shapes import UnknownShape, from_config, from_init

LLAMA_2_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "vocab_size": 32000,
}  # fmt: skip
LLAMA_3_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
QWEN_2_5_HALF_B = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
QWEN_3_0_6_B = {
    "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "head_dim": 128,
    "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip

PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Llama 2 7B": (LLAMA_2_7B, 6_738_415_616),
    "Llama 3 8B, grouped queries": (LLAMA_3_8B, 8_030_261_248),
    "Qwen 2.5 0.5B, tied, with biases": (QWEN_2_5_HALF_B, 494_032_768),
    "Qwen 3 0.6B, tied, with norms of heads": (QWEN_3_0_6_B, 596_049_920),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_published_parameters(name: str) -> None:
    """As its card says, to the last one."""
    config, parameters = PUBLISHED[name]
    assert from_config(config, name).parameters == parameters


def test_the_recipes_new_model_is_counted() -> None:
    """2048 × 128 embedded and tied; two layers of 2 × 128 × 128 + 2 × 128 × 64 + 3 × 128 × 384 + 2 × 128; a norm."""
    assert from_init(InitModel()).parameters == 2048 * 128 + 2 * (32_768 + 16_384 + 147_456 + 256) + 128


def test_what_gets_no_decay_is_embedding_norms_and_biases() -> None:
    """As the trainer groups them."""
    shape = from_config(QWEN_2_5_HALF_B, "qwen")
    assert shape.undecayed == 151_936 * 896 + 24 * (2 * 896 + 896 + 2 * 128) + 896


@pytest.mark.parametrize(
    ("changes", "has_windows"),
    [
        ({}, False),
        ({"use_sliding_window": True}, False),
        ({"use_sliding_window": True, "max_window_layers": 12}, True),
        ({"use_sliding_window": False, "max_window_layers": 12}, False),
        ({"layer_types": ["full_attention", "sliding_attention"]}, True),
    ],
)
def test_layers_with_sliding_windows_are_seen(changes: dict[str, Any], has_windows: bool) -> None:
    """In both forms that a config.json says it in."""
    assert from_config({**QWEN_2_5_HALF_B, **changes}, "qwen").has_windows is has_windows


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2', whose memory cannot be planned; expected one of llama"),
        ({"model_type": "llama"}, "no sizes of a llama model"),
        ({**LLAMA_2_7B, "hidden_size": None}, "no sizes of a llama model"),
    ],
)
def test_a_config_that_cannot_be_counted_is_refused(config: dict[str, Any], said: str) -> None:
    """With the file that it is in."""
    with pytest.raises(UnknownShape, match=r"x/config.json") as caught:
        from_config(config, "x/config.json")
    assert said in str(caught.value)
