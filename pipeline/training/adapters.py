"""LoRA: thin matrices beside a model's layers, trained alone, and merged into it or kept beside it (peft)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.contracts.finetune import Lora
from pipeline.errors import SpecError
from pipeline.imports import hide


def add(model: Any, settings: Lora, *, seed: int) -> Any:
    """`model` with adapters, all else frozen. The same seed gives the same matrices.

    Raises:
        SpecError: the model has no layers of the names given.
    """
    hide("bitsandbytes")
    from peft import LoraConfig, get_peft_model

    targets = settings.targets if settings.targets == "all-linear" else list(settings.targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if hasattr(module, "in_features")}
        raise SpecError(
            f"finetune.lora.targets is {targets}, and the base model has no such layers ({error}); its linear layers"
            f" are {', '.join(sorted(names))}"
        ) from error


def merged(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the base model with the adapters' products added.

    Args:
        model: of `add`, with the base model's weights.
        state: the trained matrices.
    """
    load(model, state)
    weights: dict[str, Tensor] = model.merge_and_unload().state_dict()
    return weights


def load(model: Any, state: dict[str, Tensor]) -> None:
    """Puts trained matrices into `model`."""
    own = model.state_dict()
    missing = [name for name in own if "lora_" in name and name not in state]
    if missing:
        raise RuntimeError(f"the training left no weights for {missing[0]} and {len(missing) - 1} others")
    model.load_state_dict(state, strict=False)


def save(model: Any, folder: Path) -> None:
    """Writes the adapter alone, in peft's form, which names no path of this machine."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = ".."
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # peft's card, with nothing in it but headings
