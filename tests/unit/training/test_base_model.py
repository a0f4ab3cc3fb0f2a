"""Which base models and teachers a training is refused with."""

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, Qwen2Config

from pipeline.contracts.finetune import Finetune
from pipeline.contracts.recipe import InitModel
from pipeline.errors import SpecError
from pipeline.training.base_model import check_model, check_teacher, write_new_model
from tests.chat_files import good_rows, write_jsonl

FOUR = {"nodes": 4, "batch_size": 32, "max_seq_len": 64}

REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "slices that cut a head": (
        {"num_attention_heads": 6},
        {"tensor": 4},
        "must divide the model's attention heads",
    ),
    "slices that cut a key-value head": (
        {},
        {"tensor": 4},
        "parallelism: tensor (4) must divide the model's key-value",
    ),
    "parts that cut a head": ({"num_attention_heads": 6}, {"sequence": 4}, "sequence (4) must divide"),
    "more stages than layers": ({}, {"pipeline": 4}, "pipeline (4) must not exceed the model's layers (2)"),
    "sequences beyond the positions": ({"max_position_embeddings": 32}, {}, "max_seq_len (64) exceeds"),
}


def config(**changes: Any) -> LlamaConfig:
    fields = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(**{**fields, **changes})


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_cannot_be_spread_so_is_refused_with_its_sizes(case: str, tmp_path: Path) -> None:
    """Before a rank is started."""
    shape, spread, said = REFUSED[case]
    config(**shape).save_pretrained(tmp_path)
    with pytest.raises(SpecError) as caught:
        check_model(tmp_path, Finetune.model_validate({**FOUR, "parallelism": spread}))
    assert said in str(caught.value)


def test_sliding_windows_have_no_stages(tmp_path: Path) -> None:
    """A pipeline's layers would attend to everything before them."""
    Qwen2Config(num_hidden_layers=4, use_sliding_window=True, max_window_layers=2).save_pretrained(tmp_path)
    settings = Finetune.model_validate({**FOUR, "parallelism": {"pipeline": 2}})
    with pytest.raises(SpecError, match="sliding-window attention"):
        check_model(tmp_path, settings)


def test_a_teacher_of_other_tokens_is_refused_with_the_first_that_differs(tmp_path: Path) -> None:
    """Two tokenizers of different sizes, trained on the same rows."""
    rows_path = write_jsonl(tmp_path / "train.jsonl", good_rows(200))
    for name, size in (("student", 320), ("teacher", 340)):
        write_new_model(InitModel(vocab_size=size), rows_path, tmp_path / name)
    check_teacher(tmp_path / "student", tmp_path / "student")
    with pytest.raises(SpecError, match="is token 320 to the teacher and None to the base model"):
        check_teacher(tmp_path / "teacher", tmp_path / "student")
