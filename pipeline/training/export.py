"""What training leaves behind: a Hugging Face folder, and the losses as a table and a picture. The same bytes for the
same training, so no dates and no times."""

import json
from pathlib import Path
from typing import Any

from pipeline.training.base_model import copy_tokenizer

KEPT_AS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""The type of the saved weights, by the precision of the training."""


def save_model(state: dict[str, Any], source: Path, target: Path, *, precision: str) -> None:
    """Writes a Hugging Face folder of `source`'s kind to `target`, with its tokenizer.

    Args:
        state: the trained weights.
        precision: in which they are kept.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = KEPT_AS[precision]
    config = AutoConfig.from_pretrained(source)
    config.use_cache = True
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    kept = {name: tensor.detach().to("cpu", getattr(torch, dtype)) for name, tensor in state.items()}
    model.save_pretrained(target, state_dict=kept, safe_serialization=True)
    copy_tokenizer(source, target)


def save_history(history: list[dict[str, float]], folder: Path) -> None:
    """metrics.jsonl and loss.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))
    plot_loss(history, folder / "loss.png")


def plot_loss(history: list[dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=100)
    steps, losses = [record["step"] for record in history], [record["loss"] for record in history]
    axes.plot(steps, losses, color="#9db8d9", linewidth=0.8, label="loss of the step")
    axes.plot(steps, smoothed(losses), color="#1f4e8c", linewidth=1.8, label="smoothed")
    axes.set(xlabel="optimizer step", ylabel="training loss (nats per token)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    # matplotlib would write its version and nothing else; without it the bytes are the picture's alone.
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)


def smoothed(values: list[float], keep: float = 0.95) -> list[float]:
    """An exponential moving average without its bias towards 0 (Kingma and Ba 2015, section 3)."""
    averages, average = [], 0.0
    for count, value in enumerate(values, start=1):
        average = keep * average + (1 - keep) * value
        averages.append(average / (1 - keep**count))
    return averages
