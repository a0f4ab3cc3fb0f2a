"""A checkpoint goes on with any number of ranks and any stage of ZeRO, and says so where it cannot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Trained, small, train_on_ranks, write_model, write_tokens
from safetensors.torch import load_file

pytestmark = pytest.mark.integration

AGREE = 2e-5
"""Between losses, in nats, in fp32: 1e-5, and as much again since the history has six digits."""

Settings = dict[str, Any]
ZERO_1: Settings = {"nodes": 2, "parallelism": {"zero": 1}}
ZERO_3: Settings = {"nodes": 2, "parallelism": {"zero": 3}}
TENSOR: Settings = {"nodes": 2, "parallelism": {"tensor": 2}}
TENSOR_ZERO_3: Settings = {"nodes": 2, "parallelism": {"tensor": 2, "zero": 3}}
PIPELINE: Settings = {"nodes": 2, "parallelism": {"pipeline": 2}, "gradient_accumulation": 2}
SEQUENCE: Settings = {"nodes": 2, "parallelism": {"sequence": 2, "zero": 0}}

ELSEWHERE: dict[str, tuple[Settings, Settings]] = {
    "ZeRO-1 on 2 to ZeRO-3 on 1": (ZERO_1, {**ZERO_3, "nodes": 1}),
    "ZeRO-3 on 2 to ZeRO-2 on 4": (ZERO_3, {"nodes": 4, "parallelism": {"zero": 2}}),
    "tensor 2 to tensor 2 × data 2": (TENSOR, {**TENSOR, "nodes": 4}),
    "tensor 2 with ZeRO-3 to tensor 2 × data 2 with ZeRO-1": (TENSOR_ZERO_3, {**TENSOR, "nodes": 4}),
    "tensor 2 to tensor 2 × data 2 with ZeRO-3": (TENSOR, {**TENSOR_ZERO_3, "nodes": 4}),
    "pipeline 2 to pipeline 2 × data 2": (PIPELINE, {**PIPELINE, "nodes": 4}),
    "sequence 2 with ZeRO-0 to ZeRO-0 on 1": (SEQUENCE, {"nodes": 1, "parallelism": {"zero": 0}}),
}
SAME: dict[str, Settings] = {
    "ZeRO-1": ZERO_1,
    "LoRA with ZeRO-3, offloaded": {
        **ZERO_3, "method": "lora", "lora": {"rank": 4}, "offload": {"optimizer": True, "parameters": True},
    },
    "bf16": {"nodes": 2, "precision": "bf16"},
    "fp16 with ZeRO-2": {"nodes": 2, "precision": "fp16", "parallelism": {"zero": 2}},
}  # fmt: skip

Trainer = Callable[..., Trained]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Trains 20 steps with a checkpoint after the tenth, from `begun`'s checkpoint if given."""
    tokens = write_tokens(tmp_path_factory.mktemp("data") / "tokens")
    model = write_model(tmp_path_factory.mktemp("llama") / "model", tied=True)

    def train(settings: Settings, *, begun: Trained | None = None, base: Path = model) -> Trained:
        folder = tmp_path_factory.mktemp("training")
        uri = f"file://{(begun.folder if begun else folder) / 'store'}/checkpoints/key"
        return train_on_ranks(small(checkpoint_every_steps=10, **settings), base, tokens, folder, checkpoints_uri=uri)

    return train


@pytest.fixture(scope="module")
def undisturbed(train: Trainer) -> Trainer:
    """Trainings that nothing disturbs, each once."""
    done: dict[str, Trained] = {}

    def once(settings: Settings) -> Trained:
        if repr(settings) not in done:
            done[repr(settings)] = train(settings)
        return done[repr(settings)]

    return once


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_training_goes_on_with_other_ranks_and_another_stage(case: str, train: Trainer, undisturbed: Trainer) -> None:
    """Steps 11 to 20 have the losses of the undisturbed training to 1e-5."""
    begun, later = ELSEWHERE[case]
    first = undisturbed(begun)
    second = train(later, begun=first)
    assert second.outcome.figures["resumed_at_step"] == 10
    assert second.losses == pytest.approx(first.losses, abs=AGREE)


@pytest.mark.parametrize("case", SAME)
def test_the_same_ranks_go_on_bit_for_bit(case: str, train: Trainer, undisturbed: Trainer) -> None:
    """Losses and weights."""
    first = undisturbed(SAME[case])
    second = train(SAME[case], begun=first)
    assert second.outcome.figures["resumed_at_step"] == 10
    assert second.history == first.history
    ours, theirs = (load_file(run.folder / "out" / "model.safetensors") for run in (second, first))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
