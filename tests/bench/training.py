"""Real tokens per second of the training loop, against what else trains the same model on the same rows.

    .venvs/model/bin/python tests/bench/training.py [--steps N] [--rounds N] [--ranks 1 2] [--plot PATH]

A bare PyTorch DDP loop, Hugging Face's Trainer, and TRL's SFTTrainer with its packing; ours with rows grouped by
length, and packed. Ranks are processes on loopback that share the machine's cores. The loops take turns in the same
processes, in another order each round, so that they meet the same load. The loss is on the answers alone, everywhere.
Prints a JSON line for each number of ranks and each baseline: the median over the rounds, and the best; `cpu_ratio`
compares tokens per second of processor time, which other programs on the machine hardly change. `--plot` draws where
each loop's time goes.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENVIRONMENT = "model"

ROOT = Path(__file__).resolve().parents[2]
BATCH_SIZE = 32
SEQUENCE = 256
OURS = ("ours, grouped by length", "ours, packed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="of each loop, in each of the rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--plot", type=Path, metavar="PATH", help="a picture to draw, such as docs/step_time.png")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        measure(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for ranks in options.ranks:
            start_ranks(Path(folder), ranks, options)
        if options.plot:
            plot([json.loads(phases_path(Path(folder), ranks).read_text()) for ranks in options.ranks], options.plot)


def phases_path(folder: Path, ranks: int) -> Path:
    """Milliseconds per 1,000 tokens, by loop and phase."""
    return folder / f"phases-{ranks}.json"


def prepare(folder: Path) -> None:
    """The demonstration's data, tokenizer and model."""
    from pipeline.contracts.recipe import InitModel
    from pipeline.data.generate import support_intents
    from pipeline.training.base_model import write_new_model
    from pipeline.training.tokenizing import write_tokens

    rows_path = folder / "train.jsonl"
    support_intents(train_rows=4000, eval_rows=50, seed=7, train_path=rows_path, eval_path=folder / "eval.jsonl")
    write_new_model(InitModel(), rows_path, folder / "base")
    write_tokens(rows_path, folder / "base", folder / "tokens", max_seq_len=128)


def start_ranks(folder: Path, ranks: int, options: argparse.Namespace) -> None:
    from pipeline.training.launch import KEEP_FREED_MEMORY

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    started = []
    for rank in range(ranks):
        environment = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": str(threads(ranks)),
            **KEEP_FREED_MEMORY,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, __file__, f"--rank={rank}", f"--folder={folder}", f"--ranks={ranks}"]
        command += [f"--steps={options.steps}", f"--rounds={options.rounds}"]
        started.append(subprocess.Popen(command, env=environment))
    codes = [process.wait() for process in started]
    if any(codes):
        sys.exit(f"the ranks ended with {codes}")


def threads(ranks: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def measure(options: argparse.Namespace) -> None:
    """All loops in turn, once unmeasured; the first rank prints what came out."""
    import torch
    from _training_loops import BareDdp, HuggingFace, Ours, Work
    from torch import distributed

    from pipeline.training.engine import join

    rank, (ranks,) = options.rank, options.ranks
    torch.set_num_threads(threads(ranks))
    join(rank, ranks)
    work = Work(options.folder, rank, ranks, BATCH_SIZE, SEQUENCE, scratch=options.folder)
    loops: dict[str, Callable[[], Any]] = {
        OURS[0]: lambda: Ours(work, packed=False),
        "ours through DeepSpeed's own step": lambda: Ours(work, packed=False, flat_step=False),
        "bare PyTorch DDP": lambda: BareDdp(work),
        "bare DDP, exchange after the backward pass": lambda: BareDdp(work, overlap=False),
        "Hugging Face Trainer": lambda: HuggingFace(work, packed=False),
        OURS[1]: lambda: Ours(work, packed=True),
        "TRL SFTTrainer, packed": lambda: HuggingFace(work, packed=True),
    }
    if ranks == 1:  # nothing to exchange
        loops = {name: loop for name, loop in loops.items() if "exchange" not in name}
    phases: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    cpu_speeds: dict[str, list[float]] = {name: [] for name in loops}
    names = list(loops)
    for number in range(options.rounds + 1):
        for name in names:
            torch.manual_seed(number)
            taken = loops[name]().run(options.steps if number else 1)
            if rank == 0:
                print(f"  {name}: {taken.tokens * ranks / taken.seconds:.0f} tokens/s", file=sys.stderr, flush=True)
            total = torch.tensor([taken.tokens, taken.cpu_s])
            distributed.all_reduce(total)
            if number:
                phases[name].append(taken.phases or {"not divided": 1.0})
                speeds[name].append(float(total[0]) / taken.seconds)
                cpu_speeds[name].append(float(total[0] / total[1]))
        names = names[1:] + names[:1]
    if rank == 0:
        report(speeds, cpu_speeds, ranks)
        divided = {f"{name}, {ranks} rank{'s' * (ranks > 1)}": divide(phases[name], speeds[name]) for name in loops}
        phases_path(options.folder, ranks).write_text(json.dumps(divided))
    distributed.destroy_process_group()


def divide(phases: list[dict[str, float]], speeds: list[float]) -> dict[str, float]:
    """The median time of 1,000 tokens in ms, by phase.

    Args:
        phases: shares of the time in each round.
        speeds: tokens/s in each round.
    """
    median = 1e6 / statistics.median(speeds)
    return {phase: median * statistics.mean(shares[phase] for shares in phases) for phase in phases[0]}


def plot(by_ranks: list[dict[str, dict[str, float]]], path: Path) -> None:
    """Draws `path`: a bar a loop, shorter is faster, as long as the time of 1,000 tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from pipeline.training.clock import PHASES
    from pipeline.training.step_time import COLORS

    bars = [item for loops in by_ranks for item in loops.items()]
    figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.36 * len(bars)), dpi=110)
    ends = [0.0] * len(bars)
    for phase, color in (*zip(PHASES, COLORS, strict=True), ("not divided", "#555555")):
        lengths = [times.get(phase, 0.0) for _, times in bars]
        if any(lengths):
            axes.barh([name for name, _ in bars], lengths, left=ends, color=color, label=phase)
            ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds for 1,000 real tokens, first rank")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="upper center", ncols=7, frameon=False, columnspacing=1.2, handlelength=1.2)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    figure.savefig(path)


def report(speeds: dict[str, list[float]], cpu_speeds: dict[str, list[float]], ranks: int) -> None:
    """A line a baseline: ours in the same round ÷ the baseline, the median of the rounds.

    Args:
        cpu_speeds: tokens per second of processor time, over all ranks.
    """
    for ours in OURS:
        line = {"name": f"training, {ranks} rank{'s' * (ranks > 1)}, {ours}", "unit": "tokens/s"}
        for baseline in [name for name in speeds if name not in OURS]:
            ratio, cpu_ratio = (
                statistics.median(a / b for a, b in zip(found[ours], found[baseline], strict=True))
                for found in (speeds, cpu_speeds)
            )
            print(
                json.dumps(
                    {
                        **line,
                        "value": round(statistics.median(speeds[ours])),
                        "best": round(max(speeds[ours])),
                        "baseline": baseline,
                        "baseline_value": round(statistics.median(speeds[baseline])),
                        "baseline_best": round(max(speeds[baseline])),
                        "ratio": round(ratio, 3),
                        "cpu_ratio": round(cpu_ratio, 3),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
