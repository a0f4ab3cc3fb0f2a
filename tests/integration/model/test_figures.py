"""What a training says while it runs, and what it says when its numbers stop being numbers."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from ranks import STEPS, VOCABULARY, Trained, small, start_on_ranks, train_on_ranks, write_model, write_tokens

from pipeline.contracts.finetune import Parallelism
from pipeline.errors import SpecError
from pipeline.training.batches import make_schedule
from pipeline.training.divergence import SKIPPED_IN_A_ROW
from pipeline.training.engine import make_engine
from pipeline.training.place import Place
from pipeline.training.shares import Shares
from pipeline.training.tokens import TokenFile

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("data") / "tokens")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("llama") / "model", layers=1)


def strict(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines in which NaN and Infinity, which JSON does not know, are errors."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path.name} has {name}")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def told(trained: Trained) -> list[dict[str, float]]:
    """The events of the steps; the one at the end compares the training with its plan."""
    return [event for event in trained.events if "loss" in event]


def fault(trained: Trained) -> str:
    """What ended the training; all ranks say the same."""
    (message,) = {line for line in trained.log.splitlines() if line.startswith("pipeline.errors.DataError: ")}
    return message.removeprefix("pipeline.errors.DataError: ")


@pytest.fixture(scope="module")
def trained(llama: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """In fp32 with ZeRO-1 on two ranks."""
    return train_on_ranks(small(nodes=2), llama, tokens, tmp_path_factory.mktemp("two") / "home")


def test_the_log_tells_how_far_the_training_is_and_how_long_it_will_take(trained: Trained) -> None:
    """A line every ten steps."""
    lines = [line for line in trained.log.splitlines() if line.startswith("progress ") and "loss=" in line]
    assert len(lines) == 2
    assert re.fullmatch(r"progress 10/20 50% eta=\d+s loss=[\d.]+ tokens_per_s=[\d.e+]+", lines[0])
    assert re.fullmatch(r"progress 20/20 100% eta=0s loss=[\d.]+ tokens_per_s=[\d.e+]+", lines[1])


def test_the_events_tell_how_the_training_goes(trained: Trained) -> None:
    """Every ten steps: loss, rate, gradient norm, tokens and seconds, memory of the first and of the largest rank,
    and the share of what the cores reached in products of matrices."""
    assert [event["step"] for event in told(trained)] == [10, 20]
    for event, record in zip(told(trained), trained.history[9::10], strict=True):
        assert {name: event[name] for name in record} == record
        assert event["grad_norm"] > 0
        assert event["tokens_per_s"] > 0
        assert event["step_s"] > 0
        assert 50 < event["memory_mb"] <= event["memory_mb_largest"] < 20_000
        assert 0 < event["share_of_measured_gemm"] < 2


def test_the_events_tell_where_the_time_of_a_step_goes(trained: Trained) -> None:
    """By phase, in seconds a step; together most of the step and no more than it. A picture of it is for MLflow."""
    for event in told(trained):
        phases = {name: event[name] for name in event if name.startswith("time/")}
        assert list(phases) == [
            f"time/{phase}_s" for phase in ("data", "forward", "backward", "communication", "optimizer")
        ]
        assert min(phases.values()) > 0
        assert 0.3 * event["step_s"] < sum(phases.values()) <= event["step_s"] * 1.001
    assert (trained.folder / "step_time.png").stat().st_size > 1000


def test_gradients_without_zero_have_a_norm_too(trained: Trained, llama: Path, tokens: Path, tmp_path: Path) -> None:
    """The one that they are clipped by, as with ZeRO."""
    without = train_on_ranks(small(parallelism={"zero": 0}), llama, tokens, tmp_path / "home")
    norms = [record["grad_norm"] for record in trained.history]
    assert [record["grad_norm"] for record in without.history] == pytest.approx(norms, rel=1e-3)


def test_steps_that_fp16_lost_are_counted(llama: Path, tokens: Path, tmp_path: Path) -> None:
    """A loss scale that is too large at first loses a few steps: their records say so, and name no norm."""
    trained = train_on_ranks(
        small(precision="fp16"), llama, tokens, tmp_path / "home", instead={"engine.INITIAL_SCALE_POWER": 24}
    )
    history = strict(trained.folder / "out" / "training" / "metrics.jsonl")
    lost = [record["step"] for record in history if "skipped" in record]
    assert 0 < len(lost) < STEPS
    assert [record["step"] for record in history if "grad_norm" not in record] == lost
    assert all(record["grad_norm"] > 0 for record in history if "grad_norm" in record)
    assert trained.outcome.figures["skipped_steps"] == len(lost)
    told = [event["skipped_steps"] for event in strict(trained.folder / "events.jsonl") if "loss" in event]
    assert told == [sum(step <= end for step in lost) for end in (10, 20)]
    assert f"skipped={len(lost)}" in trained.log


def test_a_machine_that_is_slow_in_fp16_refuses_it_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False)
    with pytest.raises(SpecError, match="fp16, in which this machine cannot compute fast: use bf16 or fp32"):
        make_engine(torch.nn.Linear(1, 1), small(precision="fp16"), Place(0, 1, Parallelism()))


def test_a_training_in_fp16_that_only_loses_steps_is_ended(llama: Path, tokens: Path, tmp_path: Path) -> None:
    """On all ranks, before the loss scale is at its smallest."""
    trained, codes = start_on_ranks(
        small(precision="fp16", nodes=2), llama, tokens, tmp_path / "home", instead={"engine.INITIAL_SCALE_POWER": 60}
    )
    assert codes == [1, 1]
    assert f"{SKIPPED_IN_A_ROW} steps in a row, up to step {SKIPPED_IN_A_ROW}" in fault(trained)


def change(model: Path, folder: Path, name: str, factor: float, row: int | None = None) -> Path:
    """A copy of `model` in which the tensor `name`, or one row of it, is multiplied by `factor`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    weights[name][slice(None) if row is None else row] *= factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_loss_that_is_no_number_is_told_with_its_rank_and_rows(llama: Path, tokens: Path, tmp_path: Path) -> None:
    """Damage to one token's weights is met by the one rank whose rows have that token, at the step in which they do."""
    settings = small(nodes=2)
    rows = TokenFile(tokens)
    shares = Shares(make_schedule(rows.lengths, settings), settings, data_ranks=2)
    taken = {
        (step, rank): [row for (row,) in shares.of(step, rank)[0]] for step in range(1, STEPS + 1) for rank in range(2)
    }
    with_token = {
        token: [place for place, of_rank in taken.items() if any(token in rows.row(row)[0][:-1] for row in of_rank)]
        for token in range(1, VOCABULARY)
    }
    # A token that is first seen after step 1, and by one rank only.
    token, (step, rank) = next(
        (token, found[0])
        for token, found in with_token.items()
        if found and found[0][0] > 1 and [place[0] for place in found].count(found[0][0]) == 1
    )
    damaged = change(llama, tmp_path / "damaged", "model.embed_tokens.weight", float("nan"), row=token)

    trained, codes = start_on_ranks(settings, damaged, tokens, tmp_path / "home")

    lines = ", ".join(str(row + 1) for row in sorted(taken[step, rank]))
    assert codes == [1, 1]
    assert fault(trained).startswith(
        f"the loss became nan at step {step} on rank {rank}, which had lines {lines} of train.jsonl; the learning rate"
    )
    assert f"at step {step - 1}" in fault(trained)
    assert not (trained.folder / "out").exists()


def test_a_gradient_that_is_infinite_ends_the_training(llama: Path, tokens: Path, tmp_path: Path) -> None:
    """In fp32 it is no matter of a loss scale, though the loss is a number; DeepSpeed would leave out each step."""
    huge = change(llama, tmp_path / "huge", "model.norm.weight", 1e25)
    trained, codes = start_on_ranks(small(), huge, tokens, tmp_path / "home")
    assert codes == [1]
    assert fault(trained).startswith("the gradient norm became inf at step 1 on rank 0, which had lines ")
    assert "the base model itself gives no finite number for these rows" in fault(trained)
