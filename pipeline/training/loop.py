"""The training loop of one rank."""

import json
import math
import time
from dataclasses import dataclass, field
from typing import Any, TextIO

import torch
from torch import distributed

from pipeline.errors import DataError
from pipeline.training import checkpoints
from pipeline.training.batches import Schedule
from pipeline.training.engine import learning_rate
from pipeline.training.loss import Collator
from pipeline.training.plan import TrainingPlan

EXCHANGE_STEPS = 10
"""The ranks exchange their losses so often: for the log, and to stop together when one of them is no number."""


@dataclass
class Loop:
    """Runs the optimizer steps that `schedule` lists, from a checkpoint if there is one.

    `history` holds a record a step: step, loss, lr, grad_norm. The same on every rank.
    """

    plan: TrainingPlan
    engine: Any
    collator: Collator
    schedule: Schedule
    rank: int
    events: TextIO | None
    """Where the first rank writes figures for people; None on the others."""
    history: list[dict[str, float]] = field(default_factory=list)
    resumed_at: int = 0
    """The step of the checkpoint that this run went on from."""
    _pending: list[tuple[float, float, float]] = field(default_factory=list)
    """Of each step since the last exchange: this rank's share of the loss, the rate, the gradient's norm."""
    _tokens_since: int = 0
    _started: float = 0.0
    _clock: float = 0.0

    def run(self) -> None:
        """Trains to the end.

        Raises:
            DataError: the loss of some rank is no finite number; raised on all ranks.
        """
        settings = self.plan.settings
        first, state = checkpoints.resume(self.engine, self.plan.checkpoints_path)
        self.history = state.get("history", [])
        if first and self.events:
            print(f"resumed from the checkpoint of step {first}", flush=True)
        self.resumed_at = first
        self._clock = self._started = time.monotonic()
        num_steps = len(self.schedule.steps)
        for step in range(first + 1, num_steps + 1):
            self.optimizer_step(step)
            due = step % settings.checkpoint_every_steps == 0 and step < num_steps
            if step % EXCHANGE_STEPS == 0 or step == num_steps or due:
                self.exchange(step)
            if due:
                checkpoints.save(
                    self.engine,
                    self.plan.checkpoints_path,
                    step,
                    keep=settings.keep_checkpoints,
                    state={"history": self.history},
                )

    def optimizer_step(self, step: int) -> None:
        """Takes optimizer step `step`, counted from 1; every rank calls it."""
        settings, engine = self.plan.settings, self.engine
        accumulation, world_size = settings.gradient_accumulation, self.plan.world_size
        rate = learning_rate(step, len(self.schedule.steps), settings)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        total_weight = self.collator.weight(self.schedule.steps[step - 1])
        checkpoints.seed_step(settings.seed, step, self.rank)
        loss_share = 0.0
        for micro in range(accumulation):
            part = micro * world_size + self.rank
            sequences = self.schedule.share(step - 1, part, accumulation * world_size)
            loss = engine(self.collator.collate(sequences).to(engine.device)) / max(total_weight, 1e-9)
            # The engine averages over ranks and micro-batches; what is wanted is their sum.
            engine.backward(loss * (world_size * accumulation))
            engine.step()
            loss_share += float(loss.detach())
        self._tokens_since += self.collator.num_tokens(self.schedule.steps[step - 1])
        self._pending.append((loss_share, rate, float(engine.get_global_grad_norm() or 0.0)))

    def exchange(self, step: int) -> None:
        """Adds the steps since the last exchange to `history`, with the losses of all ranks."""
        first = step - len(self._pending) + 1
        shares = torch.zeros(self.plan.world_size, len(self._pending), dtype=torch.float64)
        shares[self.rank] = torch.tensor([share for share, _, _ in self._pending], dtype=torch.float64)
        shares = shares.to(self.engine.device)
        distributed.all_reduce(shares)
        shares = shares.cpu()
        _refuse_non_finite(shares, first)
        losses = shares.sum(dim=0).tolist()
        for offset, (loss, (_, rate, norm)) in enumerate(zip(losses, self._pending, strict=True)):
            record = {"step": first + offset, "loss": loss, "lr": rate, "grad_norm": norm}
            self.history.append({name: float(f"{value:.6g}") for name, value in record.items()})
        self._pending.clear()
        if self.events:
            self._report(step, self.events)

    def _report(self, step: int, events: TextIO) -> None:
        now = time.monotonic()
        tokens_per_s = self._tokens_since / max(now - self._clock, 1e-9)
        self._clock, self._tokens_since = now, 0
        total, last = len(self.schedule.steps), self.history[-1]
        eta_s = (now - self._started) / (step - self.resumed_at) * (total - step)
        print(
            f"progress {step}/{total} {step / total:.0%} eta={eta_s:.0f}s"
            f" loss={last['loss']:.4g} tokens_per_s={tokens_per_s:.4g}",
            flush=True,
        )
        events.write(json.dumps({**last, "tokens_per_s": tokens_per_s}) + "\n")
        events.flush()


def _refuse_non_finite(shares: torch.Tensor, first_step: int) -> None:
    """Args: shares: (ranks, steps)."""
    for offset in range(shares.shape[1]):
        for rank in range(shares.shape[0]):
            value = float(shares[rank, offset])
            if not math.isfinite(value):
                raise DataError(
                    f"the loss became {value} at step {first_step + offset} on rank {rank}: training has diverged;"
                    " lower finetune.learning_rate, lengthen finetune.warmup_fraction, or use precision fp32"
                )
