"""The training loop of one rank."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TextIO

import torch
from torch import distributed

from pipeline.errors import DataError
from pipeline.training.batches import Schedule
from pipeline.training.checkpoints import Checkpoints, seed_step
from pipeline.training.engine import learning_rate
from pipeline.training.loss import Collator, MicroBatch
from pipeline.training.place import Place
from pipeline.training.plan import TrainingPlan
from pipeline.training.trainers import Trainer

EXCHANGE_STEPS = 10
"""The ranks exchange their losses so often: for the log, and to stop together when one of them is no number."""


@dataclass
class Loop:
    """Runs the optimizer steps that `schedule` lists, from a checkpoint if there is one.

    `history` holds a record a step: step, loss, lr, grad_norm. The same on every rank.
    """

    plan: TrainingPlan
    trainer: Trainer
    collator: Collator
    schedule: Schedule
    place: Place
    events: TextIO | None
    """Where the first rank writes figures for people; None on the others."""
    history: list[dict[str, float]] = field(default_factory=list)
    resumed_at: int = 0
    """The step of the checkpoint that this run went on from."""
    stalled_s: float = 0.0
    """How long checkpoints have held the training up."""
    _pending: list[tuple[float, float, float]] = field(default_factory=list)
    """Of each step since the last exchange: this rank's share of the loss, the rate, the gradient's norm."""
    _tokens_since: int = 0
    _started: float = 0.0
    _clock: float = 0.0
    _reported_at: int = 0

    def run(self) -> None:
        """Trains to the end.

        Raises:
            DataError: the loss of some rank is no finite number; raised on all ranks.
            SlipwayError: a checkpoint that cannot be read or written.
        """
        settings = self.plan.settings
        checkpoints = Checkpoints(
            self.plan.checkpoints_uri, self.plan.checkpoints_path, self.place, settings.keep_checkpoints
        )
        first, self.history = checkpoints.resume(self.trainer.engine)
        if first and self.events:
            print(f"resumed from the checkpoint of step {first}", flush=True)
        self.resumed_at = self._reported_at = first
        self._clock = self._started = time.monotonic()
        num_steps = len(self.schedule.steps)
        for step in range(first + 1, num_steps + 1):
            self.optimizer_step(step)
            due = step % settings.checkpoint_every_steps == 0 and step < num_steps
            if step % EXCHANGE_STEPS == 0 or step == num_steps or due:
                self.exchange(step)
                checkpoints.settle()
            if due:
                checkpoints.save(self.trainer.engine, step, self.history)
        checkpoints.finish()
        self.stalled_s = checkpoints.stalled_s

    def optimizer_step(self, step: int) -> None:
        """Takes optimizer step `step`, counted from 1; every rank calls it."""
        settings, place = self.plan.settings, self.place
        self.trainer.clock.start()
        rate = learning_rate(step, len(self.schedule.steps), settings)
        total_weight = self.collator.weight(self.schedule.steps[step - 1])
        # Dropout differs between the ranks' rows, and is the same in all slices of a layer.
        seed_step(settings.seed, step, place.data_rank * place.parallelism.sequence + place.part)
        share = self.trainer.step(self._batches(step), total_weight, rate)
        self._tokens_since += self.collator.num_tokens(self.schedule.steps[step - 1])
        self._pending.append((share, rate, float(self.trainer.engine.get_global_grad_norm() or 0.0)))

    def _batches(self, step: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches of optimizer step `step`."""
        accumulation = self.plan.settings.gradient_accumulation
        for micro in range(accumulation):
            part = micro * self.place.data_ranks + self.place.data_rank
            yield self.collator.collate(self.schedule.share(step - 1, part, accumulation * self.place.data_ranks))

    def exchange(self, step: int) -> None:
        """Adds the steps since the last exchange to `history`, with the losses of all ranks."""
        first = step - len(self._pending) + 1
        shares = torch.zeros(self.place.world_size, len(self._pending), dtype=torch.float64)
        shares[self.place.rank] = torch.tensor([share for share, _, _ in self._pending], dtype=torch.float64)
        shares = shares.to(self.trainer.engine.device)
        distributed.all_reduce(shares)
        shares = shares.cpu()
        _refuse_non_finite(shares, first)
        losses = shares.sum(dim=0).tolist()
        for offset, (loss, (_, rate, norm)) in enumerate(zip(losses, self._pending, strict=True)):
            record = {"step": first + offset, "loss": loss, "lr": rate, "grad_norm": norm}
            self.history.append({name: float(f"{value:.8g}") for name, value in record.items()})
        self._pending.clear()
        if self.events:
            self._report(step, self.events)

    def _report(self, step: int, events: TextIO) -> None:
        now = time.monotonic()
        steps = step - self._reported_at
        times = {f"time/{phase}_s": seconds / steps for phase, seconds in self.trainer.clock.take().items()}
        self._reported_at = step
        tokens_per_s = self._tokens_since / max(now - self._clock, 1e-9)
        self._clock, self._tokens_since = now, 0
        total, last = len(self.schedule.steps), self.history[-1]
        eta_s = (now - self._started) / (step - self.resumed_at) * (total - step)
        print(
            f"progress {step}/{total} {step / total:.0%} eta={eta_s:.0f}s"
            f" loss={last['loss']:.4g} tokens_per_s={tokens_per_s:.4g}",
            flush=True,
        )
        events.write(json.dumps({**last, "tokens_per_s": tokens_per_s, **times}) + "\n")
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
