"""An adapter beside a model: where it lies in a model folder, and what an engine that applies it must know.

Form: peft's, `adapter/adapter_config.json` and `adapter/adapter_model.safetensors` in a Hugging Face folder.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError

FOLDER = "adapter"
SERVED_RANKS = (8, 16, 32, 64, 128, 256, 512)
"""Ranks that the serving engine keeps room for; a smaller adapter goes into the next one."""


@dataclass(frozen=True)
class Adapter:
    """What lies in a model folder beside the base model."""

    path: Path
    room: int
    """In ranks, that the serving engine must keep for it."""
    targets: list[str]
    """The layers that it changes. The engine is told: it would otherwise prepare the output layer too, with which it
    cannot say how likely a prompt is."""


def adapter_of(model_path: Path) -> Adapter | None:
    """The adapter in a model folder; None if the model is whole without.

    Raises:
        DataError: its rank is larger than any that can be served.
    """
    config_path = model_path / FOLDER / "adapter_config.json"
    if not config_path.is_file():
        return None
    config = json.loads(config_path.read_bytes())
    room = next((served for served in SERVED_RANKS if config["r"] <= served), None)
    if room is None:
        raise DataError(
            f"{config_path.parent} has rank {config['r']}, and the serving engine takes at most {SERVED_RANKS[-1]}:"
            " lower finetune.lora.rank, or let finetune.lora.output be merged"
        )
    return Adapter(config_path.parent, room, sorted(config["target_modules"]))
