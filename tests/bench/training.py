"""Real tokens per second of the training loop, against a bare PyTorch DDP loop on the same model and batches.

    .venvs/model/bin/python tests/bench/training.py [--steps N]

Two ranks each, one thread a rank, on loopback; both take turns in the same processes, so that they meet the same load.
Prints a JSON line.
"""

import argparse
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENVIRONMENT = "model"

ROOT = Path(__file__).resolve().parents[2]
RANKS = 2
ROUNDS = 5
WARM_UP_STEPS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="of each loop, in each of the rounds")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        measure(options.rank, options.folder, options.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        start_ranks(Path(folder), options.steps)


def prepare(folder: Path) -> None:
    """The demonstration's data, tokenizer and model."""
    from pipeline.contracts.recipe import InitModel
    from pipeline.data.generate import support_intents
    from pipeline.training.base_model import load_tokenizer, write_new_model
    from pipeline.training.tokens import write_tokens

    rows_path = folder / "train.jsonl"
    support_intents(train_rows=2000, eval_rows=50, seed=7, train_path=rows_path, eval_path=folder / "eval.jsonl")
    write_new_model(InitModel(), rows_path, folder / "base")
    write_tokens(rows_path, load_tokenizer(folder / "base"), folder / "tokens", max_seq_len=128)


def start_ranks(folder: Path, steps: int) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    ranks = []
    for rank in range(RANKS):
        environment = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(RANKS),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
        }
        command = [sys.executable, __file__, f"--rank={rank}", f"--folder={folder}", f"--steps={steps}"]
        ranks.append(subprocess.Popen(command, env=environment))
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        sys.exit(f"the ranks ended with {codes}")


def measure(rank: int, folder: Path, steps: int) -> None:
    """Both loops in turn; the best round of each counts, since noise only ever slows."""
    import torch
    from torch import distributed

    from pipeline.contracts.finetune import Finetune
    from pipeline.training.batches import make_schedule
    from pipeline.training.engine import join
    from pipeline.training.loss import Collator
    from pipeline.training.tokens import TokenFile

    torch.set_num_threads(1)
    join(rank, RANKS)
    settings = Finetune(nodes=RANKS, epochs=16)
    collator = Collator(TokenFile(folder / "tokens"), pad_id=0, prompt_weight=0.2)
    schedule = make_schedule(collator.tokens.lengths, settings)
    loops = {
        "ours": our_loop(folder, collator, schedule, settings, rank),
        "ddp": ddp_loop(folder, collator, schedule, rank),
    }
    best = dict.fromkeys(loops, 0.0)
    for number in range(ROUNDS + 1):
        first = 0 if number == 0 else WARM_UP_STEPS + (number - 1) * steps
        span = range(first, first + (WARM_UP_STEPS if number == 0 else steps))
        for name, step in loops.items():
            distributed.barrier()
            started = time.monotonic()
            # Our loop tells of its progress, which counts as its work; the figures here are for programs.
            with contextlib.redirect_stdout(io.StringIO()):
                for index in span:
                    step(index)
            seconds = time.monotonic() - started
            if number:
                best[name] = max(best[name], sum(collator.num_tokens(schedule.steps[i]) for i in span) / seconds)
    if rank == 0:
        line = {"name": "training, 2 ranks", "value": round(best["ours"]), "unit": "tokens/s"}
        baseline = {"baseline": "bare PyTorch DDP", "baseline_value": round(best["ddp"])}
        print(json.dumps({**line, **baseline, "ratio": round(best["ours"] / best["ddp"], 3)}), flush=True)
    distributed.destroy_process_group()


def new_model(folder: Path) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from pipeline.training.loss import WeightedLoss

    torch.manual_seed(0)
    return WeightedLoss(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "base"))).train()


def our_loop(folder: Path, collator: Any, schedule: Any, settings: Any, rank: int) -> Callable[[int], None]:
    """An optimizer step as the finetune step takes it, loss exchange, schedule and all."""
    import io

    from pipeline.training.loop import EXCHANGE_STEPS, Loop
    from pipeline.training.place import Place
    from pipeline.training.plan import TrainingPlan
    from pipeline.training.trainers import EngineTrainer

    nowhere = folder / "nowhere"
    paths = dict.fromkeys(
        ("model_path", "tokens_path", "checkpoints_path", "events_path", "fault_path", "outcome_path", "output_path"),
        nowhere,
    )
    uri = f"file://{nowhere}/checkpoints/key"
    plan = TrainingPlan(settings=settings, node_rank=rank, threads=1, fresh=True, checkpoints_uri=uri, **paths)
    place = Place(rank, RANKS, settings.parallelism)
    trainer = EngineTrainer(new_model(folder), settings, place)
    loop = Loop(plan, trainer, collator, schedule, place, io.StringIO() if rank == 0 else None)

    def step(index: int) -> None:
        loop.optimizer_step(index + 1)
        if (index + 1) % EXCHANGE_STEPS == 0:
            loop.exchange(index + 1)

    return step


def ddp_loop(folder: Path, collator: Any, schedule: Any, rank: int) -> Callable[[int], None]:
    """The shortest loop that trains the same model on the same batches."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(new_model(folder))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(index: int) -> None:
        loss = model(collator.collate(schedule.share(index, rank, RANKS))) / 100
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
