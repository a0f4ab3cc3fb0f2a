"""How long a checkpoint of 100 MB holds the training up, against a save that the training waits for to its end.

    .venvs/model/bin/python tests/bench/checkpoint_stall.py [--saves N]

One rank with ZeRO-1, an optimizer step between saves; both kinds take turns, and the median of each counts. The store
is a local folder: one that is further away makes the save that is waited for longer, and not the other. Prints a JSON
line.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

ENVIRONMENT = "model"

ROOT = Path(__file__).resolve().parents[2]
WIDTH, LAYERS = 1024, 8
BYTES_PER_PARAMETER = 12
"""A weight and two averages, in fp32."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=5, help="of each kind")
    options = parser.parse_args()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    with tempfile.TemporaryDirectory() as folder:
        stalls, waits, parameters = measure(Path(folder), options.saves)
    ours, theirs = statistics.median(stalls), statistics.median(waits)
    size = round(parameters * BYTES_PER_PARAMETER / 1e6)
    line = {"name": f"checkpoint of {size} MB, stall", "value": round(1000 * ours, 1), "unit": "ms"}
    baseline = {"baseline": "the same save, waited for", "baseline_value": round(1000 * theirs, 1)}
    print(json.dumps({**line, **baseline, "ratio": round(ours / theirs, 3)}), flush=True)


def measure(folder: Path, saves: int) -> tuple[list[float], list[float], int]:
    """Seconds of each save that goes on beside the training, of each that is waited for, and the parameters."""
    import torch
    from torch import distributed, nn

    from pipeline.contracts.finetune import Finetune
    from pipeline.training.checkpoints import Checkpoints
    from pipeline.training.engine import join, make_engine
    from pipeline.training.place import Place

    join(0, 1)
    settings = Finetune(nodes=1)
    place = Place(0, 1, settings.parallelism)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    engine = make_engine(model, settings, place)
    checkpoints = Checkpoints(f"file://{folder}/store/checkpoints/key", folder / "scratch", place, keep=1)
    inputs = torch.ones(4, WIDTH)

    def step() -> None:
        engine.backward(engine(inputs).square().mean())
        engine.step()

    def save(number: int, *, to_its_end: bool) -> float:
        step()
        checkpoints.finish()
        began = time.monotonic()
        checkpoints.save(engine, number, [])
        if to_its_end:
            checkpoints.finish()
        return time.monotonic() - began

    save(1, to_its_end=True)  # the buffers are allocated once
    stalls, waits = [], []
    for number in range(saves):
        stalls.append(save(2 * number + 2, to_its_end=False))
        waits.append(save(2 * number + 3, to_its_end=True))
    checkpoints.finish()
    distributed.destroy_process_group()
    return stalls, waits, sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
