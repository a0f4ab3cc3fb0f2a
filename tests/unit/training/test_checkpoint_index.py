"""Checkpoints in the store: complete or absent, few, and refused when they are not what was written."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.artifacts import Store, open_store
from pipeline.contracts.finetune import Parallelism
from pipeline.errors import IntegrityError, SpecError
from pipeline.training import checkpoint_index
from pipeline.training.checkpoint_index import Index, Part, Piece
from pipeline.training.checkpoint_reader import Reader, check_cut, check_shapes, fetch_part
from pipeline.training.fragments import KINDS, Fragment
from pipeline.training.place import Place

FOLDER = "checkpoints/key"
SHAPE = (2, 5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path / 'store'}")


def values(kind: str) -> torch.Tensor:
    """Of the whole parameter."""
    return torch.arange(10.0) + 100 * KINDS.index(kind)


def write_part(store: Store, scratch: Path, *, step: int = 10, offset: int = 0, size: int = 10) -> Part:
    """A range of the only parameter."""
    path = scratch / "rank-0000.safetensors"
    save_file({f"{kind}/w": values(kind)[offset : offset + size].clone() for kind in KINDS}, path)
    entry = checkpoint_index.upload_named(store, path, f"{FOLDER}/step-{step:08d}", stem="rank-0000")
    return Part(file=entry, stage=0, slice=0, pieces=(Piece(name="w", shape=SHAPE, offset=offset, size=size),))


def index_of(*parts: Part, step: int = 10, **changes: int) -> Index:
    fields = {"step": step, "adam_step": step, "tensor": 1, "pipeline": 1, "world_size": 1, **changes}
    history = [{"step": 1.0, "loss": 2.5, "grad_norm": 3.25}]
    return Index(**fields, loss_scale={}, history=history, parts=parts)


def commit(store: Store, scratch: Path, step: int) -> None:
    checkpoint_index.commit(store, FOLDER, index_of(write_part(store, scratch, step=step), step=step), scratch)


def test_a_checkpoint_is_there_once_its_index_is(store: Store, tmp_path: Path) -> None:
    """And its history may hold the infinite norm of a gradient that overflowed."""
    part = write_part(store, tmp_path)
    assert checkpoint_index.steps(store, FOLDER) == []
    checkpoint_index.commit(store, FOLDER, index_of(part), tmp_path)
    assert checkpoint_index.steps(store, FOLDER) == [10]
    assert checkpoint_index.read_index(store, FOLDER, 10) == index_of(part)


def test_whoever_completes_a_step_first_has_completed_it(store: Store, tmp_path: Path) -> None:
    """A gang that was thought dead changes nothing of what the living one has written."""
    part = write_part(store, tmp_path)
    checkpoint_index.commit(store, FOLDER, index_of(part), tmp_path)
    late = write_part(store, tmp_path, size=4)
    checkpoint_index.commit(store, FOLDER, index_of(late), tmp_path)
    assert checkpoint_index.read_index(store, FOLDER, 10).parts == (part,)
    assert fetch_part(part, store, FOLDER, 10, tmp_path / "copy").is_file()


def test_the_newest_checkpoints_are_kept_and_unfinished_ones_go(store: Store, tmp_path: Path) -> None:
    """One that is still being written is left alone."""
    write_part(store, tmp_path, step=5)
    for step in (10, 20, 30):
        commit(store, tmp_path, step)
    write_part(store, tmp_path, step=40)
    checkpoint_index.remove_old(store, FOLDER, keep=2)
    assert checkpoint_index.steps(store, FOLDER) == [20, 30]
    assert {name.split("/")[2] for name in store.names(FOLDER)} == {f"step-000000{step}" for step in (20, 30, 40)}


def test_an_altered_index_is_refused_by_name(store: Store, tmp_path: Path) -> None:
    """With what to do about it."""
    commit(store, tmp_path, 10)
    (name,) = [name for name in store.names(FOLDER) if "index-" in name]
    path = store.local_path(name)
    assert path is not None
    path.write_bytes(path.read_bytes().replace(b'"loss":2.5', b'"loss":2.4'))
    with pytest.raises(
        IntegrityError, match=r"step-00000010/index-.*expected .*delete .* to go on from the checkpoint"
    ):
        checkpoint_index.read_index(store, FOLDER, 10)


@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_a_damaged_part_is_refused_by_name(damage: str, store: Store, tmp_path: Path) -> None:
    """Whether a bit is wrong or all of it is gone."""
    part = write_part(store, tmp_path)
    path = store.local_path(f"{FOLDER}/step-00000010/{part.file.path}")
    assert path is not None
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data) if damage == "altered" else path.unlink()
    with pytest.raises(IntegrityError, match=f"{part.file.path} (has digest|is missing)"):
        fetch_part(part, store, FOLDER, 10, tmp_path / "copy")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"w": (5, 2)}, r"parameter w is of shape \(2, 5\) to it and of shape \(5, 2\) to the model"),
        ({"w": SHAPE, "x": (3,)}, r"parameter x is unknown to it and of shape \(3,\) to the model"),
        ({}, r"parameter w is of shape \(2, 5\) to it and unknown to the model"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    model: dict[str, tuple[int, ...]], message: str, store: Store, tmp_path: Path
) -> None:
    """With the first parameter that differs."""
    with pytest.raises(SpecError, match=message):
        check_shapes(model, [write_part(store, tmp_path)], "s3://store/checkpoints/key")


def test_layers_that_were_cut_up_otherwise_are_refused(store: Store, tmp_path: Path) -> None:
    """A slice of a layer is no other slice."""
    place = Place(0, 2, Parallelism(tensor=2))
    with pytest.raises(SpecError, match="written with tensor 1 and pipeline 1, and this training has tensor 2"):
        check_cut(index_of(write_part(store, tmp_path)), place, "uri")


def test_a_range_is_read_from_whatever_parts_hold_it(store: Store, tmp_path: Path) -> None:
    """Three ranks wrote what one of another number reads; what no part holds is told."""
    parts = [write_part(store, tmp_path, offset=offset, size=size) for offset, size in ((0, 3), (3, 4), (7, 3))]
    held = Fragment("w", SHAPE, 2, 6, {})
    reader = Reader([held])
    assert [reader.wants(part) for part in parts] == [True, True, True]
    for part in parts[:2]:
        reader.read(fetch_part(part, store, FOLDER, 10, tmp_path / "copy"), part)
    assert reader.missing() == "1 of 6 elements of w"
    reader.read(fetch_part(parts[2], store, FOLDER, 10, tmp_path / "copy"), parts[2])
    assert reader.missing() == ""
    for kind in KINDS:
        assert torch.equal(reader.values[0][kind], values(kind)[2:8])
