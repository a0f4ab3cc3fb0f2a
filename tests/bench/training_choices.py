"""What each choice in the training's hot path is worth, one process and one thread, on the demonstration's model.

    .venvs/model/bin/python tests/bench/training_choices.py [--rounds N]

Variants take turns within a round; a JSON line a choice gives the median milliseconds of what was chosen and of the
other way (the baseline). torch.compile needs a C++ compiler; without one it says on stderr that it was left out.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ENVIRONMENT = "model"

ROOT = Path(__file__).resolve().parents[2]
ROWS = 16
"""Of a rank's micro-batch: half of the demonstration's batch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    from pipeline.training.launch import KEEP_FREED_MEMORY

    if not KEEP_FREED_MEMORY.items() <= os.environ.items():  # which glibc reads when a process begins
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_FREED_MEMORY})
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        from training import prepare

        prepare(Path(name))
        bench = Bench(Path(name))
        compare("logits of counted tokens", rounds, bench.loss(), "of all tokens", bench.loss_of_all_logits())
        compare("whole output layer", rounds, bench.loss(weight=1.0), "in chunks, made again", bench.loss_in_chunks())
        compare("fused AdamW", rounds, bench.adamw(fused=True), "a loop over tensors", bench.adamw(foreach=False))
        compare("fused AdamW", rounds, bench.adamw(fused=True), "foreach", bench.adamw(foreach=True))
        compare("attention as one kernel", rounds, bench.loss(), "as products and a softmax", bench.eager_attention())
        packed, by_document = bench.packed_attention()
        compare("packed, one mask", rounds, packed, "attention document by document", by_document)
        compare("collating in the loop", rounds, bench.collate, "a thread that collates ahead", bench.collate_ahead())
        compare("five laps of the clock", rounds, bench.laps, "nothing", lambda: None)
        if shutil.which("g++") is None:
            print("torch.compile was left out: there is no g++", file=sys.stderr)
        else:
            compare("eager", rounds, bench.loss(), "torch.compile", bench.compiled())


def compare(name: str, rounds: int, ours: Callable[[], Any], other: str, baseline: Callable[[], Any]) -> None:
    """The median of `rounds` by turns, after three unmeasured."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 3):
        for variant, taken in zip((ours, baseline), times, strict=True):
            started = time.perf_counter()
            variant()
            if number >= 3:
                taken.append(1e3 * (time.perf_counter() - started))
    value, baseline_value = (statistics.median(taken) for taken in times)
    line = {"name": f"training choice: {name}", "value": round(value, 4), "unit": "ms", "baseline": other}
    ratio = round(value / baseline_value, 3) if baseline_value > 1e-3 else None
    print(json.dumps({**line, "baseline_value": round(baseline_value, 4), "ratio": ratio}), flush=True)


class Bench:
    """The variants, over one model and batches of the same shape."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from pipeline.contracts.finetune import Finetune
        from pipeline.training.batches import make_schedule
        from pipeline.training.loss import Collator, WeightedLoss
        from pipeline.training.tokens import TokenFile

        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "base")).train()
        self.objective = WeightedLoss(self.model)
        self.tokens = TokenFile(folder / "tokens")
        self.collators = {weight: Collator(self.tokens, pad_id=0, prompt_weight=weight) for weight in (0.0, 1.0)}
        settings = Finetune(nodes=1, batch_size=ROWS)
        self.rows = make_schedule(self.tokens.lengths, settings).steps[0]
        packing = {"batching": "packing", "max_seq_len": 256, "batch_size": 2}
        self.packs = make_schedule(self.tokens.lengths, settings.model_copy(update=packing)).steps[0]

    def collate(self) -> Any:
        return self.collators[0.0].collate(self.rows)

    def collate_ahead(self) -> Callable[[], Any]:
        from concurrent.futures import ThreadPoolExecutor

        pool = ThreadPoolExecutor(1)
        pending = [pool.submit(self.collate)]

        def take() -> Any:
            batch = pending.pop().result()
            pending.append(pool.submit(self.collate))
            return batch

        return take

    def loss(self, weight: float = 0.0) -> Callable[[], None]:
        return partial(self._train, self.objective, self.collators[weight].collate(self.rows))

    def loss_of_all_logits(self) -> Callable[[], None]:
        from pipeline.training.loss import token_losses

        def objective(batch: Any) -> Any:
            logits = self.model(input_ids=batch.ids, use_cache=False).logits
            return (token_losses(logits, batch.targets) * batch.weights).sum()

        return partial(self._train, objective, self.collate())

    def loss_in_chunks(self, tokens: int = 128) -> Callable[[], None]:
        """Never more than a chunk's logits at a time; the backward pass makes them again."""
        from torch.utils.checkpoint import checkpoint

        from pipeline.training.loss import token_losses

        def chunk(hidden: Any, targets: Any, weights: Any) -> Any:
            return (token_losses(self.model.lm_head(hidden), targets) * weights).sum()

        def objective(batch: Any) -> Any:
            hidden = self.model.model(input_ids=batch.ids, use_cache=False).last_hidden_state.flatten(0, 1)
            found = batch.find_counted()
            pieces = zip(
                hidden[found].split(tokens),
                batch.targets.flatten()[found].split(tokens),
                batch.weights.flatten()[found].split(tokens),
                strict=True,
            )
            return sum(checkpoint(chunk, *piece, use_reentrant=False) for piece in pieces)

        return partial(self._train, objective, self.collators[1.0].collate(self.rows))

    def eager_attention(self) -> Callable[[], None]:
        import torch
        from transformers import AutoModelForCausalLM

        from pipeline.training.loss import WeightedLoss

        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(self.model.config, attn_implementation="eager").train()
        return partial(self._train, WeightedLoss(model), self.collate())

    def adamw(self, **options: Any) -> Callable[[], Any]:
        """Over a rank's partitions, as ZeRO-1 gives them on one rank: two flat tensors."""
        import torch

        sizes = (394_000, 262_000)
        parameters = [torch.nn.Parameter(torch.randn(size)) for size in sizes]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        return torch.optim.AdamW(parameters, lr=1e-3, **options).step

    def packed_attention(self) -> tuple[Callable[[], None], Callable[[], None]]:
        import torch
        from transformers import AttentionInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        from pipeline.training.loss import MicroBatch

        sizes: list[int] = []

        def by_document(module: Any, query: Any, key: Any, value: Any, _mask: Any, **options: Any) -> Any:
            parts = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
            outputs = [sdpa_attention_forward(module, *part, None, **options)[0] for part in parts]
            return torch.cat(outputs, dim=1), None

        AttentionInterface.register("by_document", by_document)
        collator = self.collators[0.0]
        packed = collator.collate(self.packs)
        rows = [row for sequence in self.packs for row in sequence]
        sizes.extend(int(self.tokens.lengths[row]) for row in rows)
        line = collator.collate([tuple(rows)])
        unmasked = MicroBatch(line.ids, line.targets, line.weights, line.positions, counted=line.counted)

        def train(implementation: str, batch: Any) -> None:
            self.model.config._attn_implementation = implementation
            self._train(self.objective, batch)
            self.model.config._attn_implementation = "sdpa"

        return partial(train, "sdpa", packed), partial(train, "by_document", unmasked)

    def laps(self) -> None:
        import torch

        from pipeline.training.clock import PHASES, Clock

        clock = Clock(torch.device("cpu"))
        clock.start()
        for phase in PHASES[:5]:
            clock.lap(phase)

    def compiled(self) -> Callable[[], None]:
        import torch

        from pipeline.training.loss import WeightedLoss

        inner = self.model.model
        objective = WeightedLoss(self.model)
        compiled = torch.compile(inner, dynamic=True)
        batch = self.collate()

        def train() -> None:
            self.model.model = compiled
            self._train(objective, batch)
            self.model.model = inner

        return train

    def _train(self, objective: Callable[[Any], Any], batch: Any) -> None:
        objective(batch).backward()
        self.model.zero_grad()


if __name__ == "__main__":
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    sys.path.insert(0, str(ROOT))
    main()
