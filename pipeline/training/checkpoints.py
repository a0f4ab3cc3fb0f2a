"""Checkpoints on the node's own disk, complete or absent, and the choice of the one to go on from.

`step-00000200/` appears by a rename after every rank has written its part, so a folder with that name is whole. A
node that dies between its neighbour's rename and its own leaves different newest steps behind: all ranks go on from
the newest step that all of them have. Older folders go only after every node has the new one.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import distributed

PREFIX = "step-"


def save(engine: Any, folder: Path, step: int, *, keep: int, state: dict[str, Any]) -> None:
    """Writes the checkpoint of `step`; every rank calls it.

    Args:
        state: of the training loop, given back by `resume`.
    """
    first_on_node = engine.local_rank == 0
    partial = folder / f".{PREFIX}{step:08d}"
    if first_on_node:
        shutil.rmtree(partial, ignore_errors=True)
    distributed.barrier()
    engine.save_checkpoint(str(folder), tag=partial.name, client_state=state, save_latest=False)
    distributed.barrier()
    if first_on_node:
        target = folder / f"{PREFIX}{step:08d}"
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    distributed.barrier()
    if first_on_node:
        for old in steps(folder)[:-keep]:
            shutil.rmtree(folder / f"{PREFIX}{old:08d}", ignore_errors=True)


def steps(folder: Path) -> list[int]:
    """Of the whole checkpoints in `folder`, rising."""
    return sorted(int(path.name.removeprefix(PREFIX)) for path in folder.glob(f"{PREFIX}*"))


def resume(engine: Any, folder: Path) -> tuple[int, dict[str, Any]]:
    """Loads the newest checkpoint that every rank has.

    Returns:
        Its step and the loop's state; 0 and nothing if there is none.
    """
    available: list[list[int]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(available, steps(folder))
    common = set(available[0]).intersection(*available[1:])
    if not common:
        return 0, {}
    step = max(common)
    _, state = engine.load_checkpoint(str(folder), tag=f"{PREFIX}{step:08d}")
    return step, {name: state[name] for name in ("history",)}


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout's randomness depends on the step alone, not on what came before it: a resumed run draws the same."""
    torch.manual_seed((seed * 1_000_003 + step) * 4099 + rank)
