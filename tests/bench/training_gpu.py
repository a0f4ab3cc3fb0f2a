"""Tokens per second and model FLOP utilization of fine-tuning 1 B parameters on one GPU, next to others' trainers.

    .venvs/model/bin/python tests/bench/training_gpu.py [--steps N] [--rounds N] [--sequences 2048 4096]

A Llama-shaped model with random weights, in bf16 (AdamW's own copy of what is trained in fp32), all tokens in the
loss, documents of random lengths: ours packed, Hugging Face's Trainer with rows grouped by length, and TRL's SFTTrainer
packed, by turns on the same GPU, each with all parameters and with LoRA. Without a GPU it says on stderr that it was
left out; `--tiny` runs the same code with a tiny model in fp32 on the CPU, to see that it runs.

Utilization is real tokens per second × the model's FLOPs per token ÷ the device's dense peak (the data sheets' figures
in pipeline/planning/accelerators.py). FLOPs per token, forward and backward, are 6N + 12LHQT (Chowdhery et al. 2022,
"PaLM", appendix B): N parameters without the embedding's look-up, L layers, H heads of size Q, T tokens of a sequence,
causal attention in full. With LoRA they are 4N + 12LHQT + 6 × the adapters' parameters: frozen weights need the
gradient of their input alone. Documents attend to themselves alone, so T is the mean over tokens of their document's
length: attention between documents is no work that anybody asked for.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENVIRONMENT = "model"

ROOT = Path(__file__).resolve().parents[2]
BATCH_TOKENS = 32_768
SHORTEST = 64
OURS = "ours, packed"


@dataclass(frozen=True)
class Shape:
    """Of a Llama."""

    vocabulary: int = 32_000
    hidden: int = 2048
    intermediate: int = 5632
    layers: int = 22
    heads: int = 32
    kv_heads: int = 4

    def config(self, longest: int) -> Any:
        from transformers import LlamaConfig

        return LlamaConfig(
            architectures=["LlamaForCausalLM"],
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=longest,
            pad_token_id=0,
        )

    @property
    def parameters(self) -> int:
        """Without the embedding's look-up: those that multiply."""
        key_value = 2 * self.hidden * self.hidden * self.kv_heads // self.heads
        layer = 2 * self.hidden**2 + key_value + 3 * self.hidden * self.intermediate
        return self.layers * layer + self.vocabulary * self.hidden

    def adapter_parameters(self, rank: int) -> int:
        """Of LoRA on all linear layers but the output's."""
        key_value = self.hidden * self.kv_heads // self.heads
        sides = 4 * self.hidden + 2 * (self.hidden + key_value) + 3 * (self.hidden + self.intermediate)
        return self.layers * rank * sides

    def token_flops(self, length: float, *, method: str) -> float:
        attention = 12 * self.layers * self.hidden * length
        if method == "lora":
            return 4 * self.parameters + attention + 6 * self.adapter_parameters(16)
        return 6 * self.parameters + attention


ABOUT_1B = Shape()
TINY = Shape(vocabulary=320, hidden=64, intermediate=128, layers=2, heads=4, kv_heads=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="of each loop, in each of the rounds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequences", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--tiny", action="store_true", help="a tiny model in fp32 on the CPU")
    options = parser.parse_args()
    import torch

    if options.tiny:
        options.sequences = [128]
    elif not torch.cuda.is_available():
        print(
            "training_gpu was left out: torch sees no GPU on this machine (--tiny runs it on the CPU)", file=sys.stderr
        )
        return
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RANK": "0", "LOCAL_RANK": "0"}
    os.environ |= {"WORLD_SIZE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    from torch import distributed

    from pipeline.training.engine import join

    join(0, 1)
    peak = None if options.tiny else peak_flops(torch.cuda.get_device_name())
    for sequence in options.sequences:
        for method in ("full", "lora"):
            measure(options, sequence, method, peak)
    distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def peak_flops(device: str) -> float:
    """Dense, in bf16.

    Args:
        device: as torch names it, such as NVIDIA H200.
    """
    from pipeline.planning.accelerators import ACCELERATORS

    for name in sorted(ACCELERATORS, key=len, reverse=True):
        if name.split("-")[0] in device.lower():
            return ACCELERATORS[name].tflops * 1e12
    known = ", ".join(ACCELERATORS)
    sys.exit(f"training_gpu: the GPU is {device!r}, whose peak is not known; add it to those that are: {known}")


def prepare(folder: Path, shape: Shape, sequence: int, documents: int) -> float:
    """Random documents, a config and a tokenizer; gives the mean over tokens of their document's length."""
    import numpy as np

    from pipeline.contracts.recipe import InitModel
    from pipeline.data.generate import support_intents
    from pipeline.training.base_model import write_new_model
    from pipeline.training.tokens import TokenWriter

    rows_path = folder / "rows.jsonl"
    support_intents(train_rows=200, eval_rows=10, seed=7, train_path=rows_path, eval_path=folder / "eval.jsonl")
    write_new_model(InitModel(vocab_size=320), rows_path, folder / "base")
    shape.config(sequence).save_pretrained(folder / "base")
    random = np.random.default_rng(0)
    lengths = random.integers(SHORTEST, sequence + 1, size=documents)
    ids = random.integers(1, shape.vocabulary, size=int(lengths.sum()), dtype=np.int32)
    writer = TokenWriter(folder / "tokens")
    writer.add(ids, np.ones(len(ids), dtype=np.bool_), lengths.astype(np.int32))
    writer.close()
    return float((lengths.astype(np.float64) ** 2).sum() / lengths.sum())


def measure(options: argparse.Namespace, sequence: int, method: str, peak: float | None) -> None:
    """The loops by turns, each new in each round, once unmeasured."""
    import gc

    import torch
    from _training_loops import HuggingFace, Ours, Work

    shape = TINY if options.tiny else ABOUT_1B
    batch_size = 8 if options.tiny else 2 * BATCH_TOKENS // (sequence + SHORTEST)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        length = prepare(folder, shape, sequence, documents=batch_size * (options.steps + 20))
        work = Work(
            folder=folder,
            rank=0,
            ranks=1,
            batch_size=batch_size,
            sequence=sequence,
            device="cpu" if options.tiny else "cuda",
            precision="fp32" if options.tiny else "bf16",
            method=method,
            scratch=folder,
        )
        loops = {
            OURS: lambda: Ours(work, packed=True),
            "Hugging Face Trainer": lambda: HuggingFace(work, packed=False),
            "TRL SFTTrainer, packed": lambda: HuggingFace(work, packed=True),
        }
        speeds: dict[str, list[float]] = {loop: [] for loop in loops}
        for number in range(options.rounds + 1):
            for loop, make in loops.items():
                taken = make().run(options.steps)
                if number:
                    speeds[loop].append(taken.tokens / taken.seconds)
                gc.collect()
                torch.cuda.empty_cache()
    flops = shape.token_flops(length, method=method)
    report(speeds, f"training, {method}, sequence {sequence}", flops, peak)


def report(speeds: dict[str, list[float]], name: str, flops: float, peak: float | None) -> None:
    ours = statistics.median(speeds[OURS])
    for baseline in [loop for loop in speeds if loop != OURS]:
        other = statistics.median(speeds[baseline])
        line = {"name": name, "value": round(ours), "unit": "tokens/s", "baseline": baseline}
        line |= {"baseline_value": round(other), "ratio": round(ours / other, 3)}
        if peak is not None:
            line |= {"mfu": round(ours * flops / peak, 4), "baseline_mfu": round(other * flops / peak, 4)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
