"""The learning rate's course and which weights decay."""

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.contracts.finetune import Finetune
from pipeline.training.engine import learning_rate, parameter_groups

SETTINGS = Finetune(learning_rate=1e-3, warmup_fraction=0.1, decay="linear")


@pytest.mark.parametrize(
    ("step", "decay", "expected"),
    [(1, "linear", 1e-4), (10, "linear", 1e-3), (11, "linear", 1e-3), (56, "linear", 5e-4), (56, "cosine", 5e-4)],
)
def test_the_rate_warms_up_and_then_decays(step: int, decay: str, expected: float) -> None:
    """Of 100 steps, 10 warm up."""
    settings = SETTINGS.model_copy(update={"decay": decay})
    assert learning_rate(step, 100, settings) == pytest.approx(expected)


def test_the_rate_never_reaches_zero_and_works_without_warm_up() -> None:
    """Every step learns something."""
    settings = SETTINGS.model_copy(update={"warmup_fraction": 0.0})
    assert learning_rate(1, 1, settings) == 1e-3
    assert learning_rate(100, 100, settings) > 0


def test_norms_and_embeddings_do_not_decay() -> None:
    """Every weight is in one group, and only once, even when the head shares the embedding's."""
    config = LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    config.tie_word_embeddings = True
    model = LlamaForCausalLM(config)
    decayed, others = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) == 7
    assert sum(p.numel() for group in (decayed, others) for p in group["params"]) == model.num_parameters()
