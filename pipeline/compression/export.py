"""Quantizes a model folder with llm-compressor into a folder in compressed-tensors form. Model environment."""

import shutil
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.compression.schemes import layer_inputs, modifier, output_layers

COPIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "generation_config.json",
)
"""Files of the model that quantizing does not touch: byte for byte those of the original."""


def prepare_libraries() -> None:
    """What the libraries read when they are imported: errors only, no network, and threads that sleep while waiting,
    since small layers spend most of their time in waiting for one another."""
    settings.set_for_libraries(
        {
            "TQDM_DISABLE": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "LLM_COMPRESSOR_LOG_LEVEL": "ERROR",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
    )


def quantize(source: Path, target: Path, *, scheme: str, calibration_ids: list[list[int]]) -> str:
    """Writes the quantized model to `target`, the same bytes for the same arguments.

    Args:
        source: a folder in Hugging Face form.
        calibration_ids: tokens of each calibration row.

    Returns:
        A sentence about what was quantized.

    Raises:
        SpecError: the scheme cannot take the model's shapes.
    """
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(source)
    ignored = output_layers(model)
    inputs = layer_inputs(model, ignored)
    rows = Dataset.from_dict(
        {"input_ids": calibration_ids, "attention_mask": [[1] * len(ids) for ids in calibration_ids]}
    )
    recipe = modifier(scheme, inputs, ignored)
    oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(source),
        dataset=rows,
        recipe=recipe,
        num_calibration_samples=len(calibration_ids),
        max_seq_length=max(map(len, calibration_ids)),
        shuffle_calibration_samples=False,
        output_dir=str(target),
    )
    copy_untouched(source, target)
    return (
        f"{len(inputs)} layers by GPTQ on {len(calibration_ids)} rows{_group(recipe)}, {', '.join(ignored)} left as is"
    )


def copy_untouched(source: Path, target: Path) -> None:
    for pattern in COPIED:
        for path in source.glob(pattern):
            shutil.copyfile(path, target / path.name)


def weights_size_bytes(folder: Path) -> int:
    """Of all safetensors files of a model folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _group(recipe: Any) -> str:
    groups = recipe.config_groups or {}
    return "".join(f" in groups of {group.weights.group_size} weights" for group in groups.values())
