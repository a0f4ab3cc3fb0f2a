"""Saving beside the training: what is saved, what the training waits for, and what it is told."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed, nn

from pipeline.artifacts.stores import FileStore
from pipeline.contracts.finetune import Parallelism
from pipeline.contracts.manifest import FileEntry
from pipeline.errors import SpecError, TransientError
from pipeline.training import checkpoint_index, checkpoints, fragments
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.place import Place

HISTORY = [{"step": 1.0, "loss": 2.0}]


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    """A process group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Engine(SimpleNamespace):
    """What DeepSpeed's engine is without ZeRO: torch's optimizer over the module, after one step."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        module = nn.Linear(4, 3)
        adam = torch.optim.AdamW(module.parameters())
        module(torch.ones(2, 4)).sum().backward()
        adam.step()
        super().__init__(module=module, basic_optimizer=adam, optimizer=adam)

    def zero_optimization(self) -> bool:
        return False

    def zero_optimization_stage(self) -> int:
        return 0

    def fp16_enabled(self) -> bool:
        return False


class SlowStore(FileStore):
    """Uploads when it may."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.may_upload = threading.Event()

    def upload(self, source: Path, name: str, entry: FileEntry) -> None:
        assert self.may_upload.wait(60)
        super().upload(source, name, entry)


def state_of(engine: Any) -> list[torch.Tensor]:
    found = []
    for parameter in engine.module.parameters():
        state = engine.basic_optimizer.state[parameter]
        found += [parameter.detach().clone(), state["exp_avg"].clone(), state["exp_avg_sq"].clone()]
    return found


def change(engine: Any) -> None:
    for parameter in engine.module.parameters():
        parameter.data.zero_()
        for average in ("exp_avg", "exp_avg_sq"):
            engine.basic_optimizer.state[parameter][average].zero_()


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlowStore:
    store = SlowStore(tmp_path / "store")
    monkeypatch.setattr(checkpoints, "split", lambda _uri: (store, "checkpoints/key"))
    return store


def opened(tmp_path: Path) -> Checkpoints:
    uri = f"file://{tmp_path}/store/checkpoints/key"
    return Checkpoints(uri, tmp_path / "scratch", Place(0, 1, Parallelism(zero=0)), keep=2)


def test_the_training_goes_on_while_its_state_of_before_is_written(tmp_path: Path, slow: SlowStore) -> None:
    """Whatever changes after `save` returns is not in the checkpoint, which is whole only after `finish`."""
    engine, saving = Engine(), opened(tmp_path)
    before = state_of(engine)
    saving.save(engine, 10, HISTORY)
    change(engine)
    saving.settle()
    assert checkpoint_index.steps(slow, "checkpoints/key") == []
    slow.may_upload.set()
    saving.finish()
    assert opened(tmp_path).resume(engine) == (10, HISTORY)
    for ours, theirs in zip(state_of(engine), before, strict=True):
        assert torch.equal(ours, theirs)
    assert int(engine.basic_optimizer.state[engine.module.weight]["step"]) == 1


def test_one_save_is_under_way_at_a_time(tmp_path: Path, slow: SlowStore) -> None:
    """The next one waits for it, and the wait is counted."""
    engine, saving = Engine(), opened(tmp_path)
    saving.save(engine, 10, HISTORY)
    threading.Timer(0.3, slow.may_upload.set).start()
    saving.save(engine, 20, HISTORY)
    assert 10 in checkpoint_index.steps(slow, "checkpoints/key")
    assert saving.stalled_s > 0.2
    saving.finish()
    assert checkpoint_index.steps(slow, "checkpoints/key") == [10, 20]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SpecError("the key may not write"), SpecError),
        (OSError(28, "No space left on device"), TransientError),
        (ZeroDivisionError("a bug"), RuntimeError),
    ],
    ids=["refused", "full", "bug"],
)
def test_a_checkpoint_that_cannot_be_written_ends_the_training(
    error: Exception, told: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an error of the same kind; nothing is swallowed in the thread."""

    def fail(*_arguments: object, stem: str) -> None:
        raise error

    monkeypatch.setattr(checkpoint_index, "upload_named", fail)
    saving = opened(tmp_path)
    saving.save(Engine(), 10, HISTORY)
    with pytest.raises(told, match=f"the checkpoint of step 10 could not be written by rank 0: .*{error.args[-1]}"):
        saving.finish()


@pytest.mark.parametrize("fused", [True, False])
def test_the_count_of_steps_lies_where_adam_reads_it(fused: bool) -> None:
    """Beside the weights for the fused kernel, on the host for the others."""
    weight = nn.Parameter(torch.empty(2, 3, device="meta"))
    adam = torch.optim.AdamW([weight], fused=fused)
    engine = SimpleNamespace(basic_optimizer=adam, zero_optimization_stage=lambda: 1)
    fragments.begin_state(engine, 7)
    assert adam.state[weight]["step"].device.type == ("meta" if fused else "cpu")
    assert adam.state[weight]["exp_avg"].shape == (2, 3)


def test_a_training_without_checkpoints_begins_at_the_beginning(tmp_path: Path) -> None:
    """With no history."""
    assert opened(tmp_path).resume(Engine()) == (0, [])
