"""The training loop of one rank."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TextIO

import torch
from torch import distributed

from pipeline.training import shares
from pipeline.training.batches import Schedule
from pipeline.training.checkpoints import Checkpoints, seed_step
from pipeline.training.divergence import Record, refuse_endless_skips, refuse_non_finite
from pipeline.training.engine import learning_rate
from pipeline.training.loss import Collator, MicroBatch
from pipeline.training.place import Place
from pipeline.training.plan import TrainingPlan
from pipeline.training.trainers import Trainer
from pipeline.training.usage import Utilization, memory_bytes
from pipeline.training.watchdog import Watchdog

EXCHANGE_STEPS = 10
"""The ranks exchange their losses so often: for the log, and to stop together when one of them is no number."""


@dataclass
class Loop:
    """Runs the optimizer steps that `schedule` lists, from a checkpoint if there is one.

    `history` holds a record a step: step, loss, lr, grad_norm; for a step that the loss scale of fp16 made useless,
    `skipped` instead of grad_norm. The same on every rank.
    """

    plan: TrainingPlan
    trainer: Trainer
    collator: Collator
    schedule: Schedule
    place: Place
    events: TextIO | None
    """Where the first rank writes figures for people; None on the others."""
    speeds: tuple[float, ...] | None = None
    """Of the data-parallel ranks, to share the rows by; None for equal shares."""
    utilization: Utilization | None = None
    """On the first rank."""
    history: list[Record] = field(default_factory=list)
    resumed_at: int = 0
    """The step of the checkpoint that this run went on from."""
    stalled_s: float = 0.0
    """How long checkpoints have held the training up."""
    _pending: list[tuple[float, float, float | None]] = field(default_factory=list)
    """Of each step since the last exchange: this rank's share of the loss, the rate, the gradient's norm or None if
    the step was skipped."""
    _skipped_in_a_row: int = 0
    _tokens_since: int = 0
    _started: float = 0.0
    _clock: float = 0.0
    _reported: int = 0
    """The last step that was reported."""

    @property
    def shares(self) -> shares.Shares:
        """Who takes which rows."""
        return shares.Shares(self.schedule, self.plan.settings, self.place.data_ranks, self.speeds)

    def run(self) -> None:
        """Trains to the end.

        Raises:
            DataError: a loss or a gradient is no finite number; raised on all ranks.
            SlipwayError: a checkpoint that cannot be read or written.
        """
        settings = self.plan.settings
        checkpoints = Checkpoints(
            self.plan.checkpoints_uri, self.plan.checkpoints_path, self.place, settings.keep_checkpoints
        )
        first, self.history = checkpoints.resume(self.trainer.engine)
        if first and self.events:
            print(f"resumed from the checkpoint of step {first}", flush=True)
        self.resumed_at = self._reported = first
        self._report_shares()
        self._clock = self._started = time.monotonic()
        with Watchdog(settings.stall_timeout_s, self.place.rank) as watchdog:
            self._train(first, checkpoints, watchdog)
        checkpoints.finish()
        self.stalled_s = checkpoints.stalled_s

    def _train(self, first: int, checkpoints: Checkpoints, watchdog: Watchdog) -> None:
        settings, num_steps = self.plan.settings, len(self.schedule.steps)
        for step in range(first + 1, num_steps + 1):
            watchdog.at(step)
            self.optimizer_step(step)
            due = step % settings.checkpoint_every_steps == 0 and step < num_steps
            if step % EXCHANGE_STEPS == 0 or step == num_steps or due:
                self.exchange(step)
                checkpoints.settle()
            if due:
                with watchdog.asleep():  # an upload that the save has to wait for takes what it takes
                    checkpoints.save(self.trainer.engine, step, self.history)

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
        skipped = settings.precision == "fp16" and not self.trainer.engine.was_step_applied()
        norm = None if skipped else float(self.trainer.engine.get_global_grad_norm() or 0.0)
        self._pending.append((share, rate, norm))
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        refuse_endless_skips(self._skipped_in_a_row, step)

    def _batches(self, step: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches of optimizer step `step`."""
        for share in self.shares.of(step, self.place.data_rank):
            yield self.collator.collate(share)

    def rows_of(self, step: int, rank: int) -> list[int]:
        """The rows that `rank` takes in optimizer step `step`."""
        micro_batches = self.shares.of(step, replace(self.place, rank=rank).data_rank)
        return [row for sequences in micro_batches for sequence in sequences for row in sequence]

    def exchange(self, step: int) -> None:
        """Adds the steps since the last exchange to `history`, with the losses of all ranks."""
        first = step - len(self._pending) + 1
        # A line a rank: its shares of the losses, and its memory at the end.
        lines = torch.zeros(self.place.world_size, len(self._pending) + 1, dtype=torch.float64)
        own = [*(share for share, _, _ in self._pending), float(memory_bytes())]
        lines[self.place.rank] = torch.tensor(own, dtype=torch.float64)
        lines = lines.to(self.trainer.engine.device)
        distributed.all_reduce(lines)
        lines = lines.cpu()
        records = []
        for offset, (loss, (_, rate, norm)) in enumerate(
            zip(lines[:, :-1].sum(dim=0).tolist(), self._pending, strict=True)
        ):
            last = {"skipped": 1.0} if norm is None else {"grad_norm": norm}
            records.append({"step": first + offset, "loss": loss, "lr": rate, **last})
        refuse_non_finite(lines[:, :-1], records, self.history, settings=self.plan.settings, rows_of=self.rows_of)
        self.history += [{name: float(f"{value:.8g}") for name, value in record.items()} for record in records]
        self._pending.clear()
        if self.events:
            self._report(step, self.events, memory=lines[:, -1])

    def _report_shares(self) -> None:
        if self.events and self.speeds:
            print(f"balance measured: {self.shares}", flush=True)
            self._tell(self.events, {"step": self.resumed_at, **self.shares.figures})

    @property
    def num_skipped(self) -> int:
        """Steps whose gradients were not finite in fp16, so that nothing was learnt from them."""
        return sum("skipped" in record for record in self.history)

    def _report(self, step: int, events: TextIO, *, memory: torch.Tensor) -> None:
        """Args: memory: bytes of each rank."""
        now = time.monotonic()
        seconds = max(now - self._clock, 1e-9)
        steps = step - self._reported
        figures = {
            "tokens_per_s": self._tokens_since / seconds,
            "step_s": seconds / steps,
            "memory_mb": float(memory[0]) / 1e6,
            "memory_mb_largest": float(memory.max()) / 1e6,
        }
        for phase, phase_s in self.trainer.clock.take().items():
            figures[f"time/{phase}_s"] = phase_s / steps
        if self.utilization:
            figures[self.utilization.name] = self.utilization.of(self.schedule.steps[self._reported : step], seconds)
        if self.plan.settings.precision == "fp16":
            figures["skipped_steps"] = self.num_skipped
        self._clock, self._reported, self._tokens_since = now, step, 0
        total, last = len(self.schedule.steps), self.history[-1]
        eta_s = (now - self._started) / (step - self.resumed_at) * (total - step)
        skipped = f" skipped={self.num_skipped}" if self.num_skipped else ""
        print(
            f"progress {step}/{total} {step / total:.0%} eta={eta_s:.0f}s"
            f" loss={last['loss']:.4g} tokens_per_s={figures['tokens_per_s']:.4g}{skipped}",
            flush=True,
        )
        self._tell(events, {**{name: value for name, value in last.items() if name != "skipped"}, **figures})

    @staticmethod
    def _tell(events: TextIO, figures: dict[str, float]) -> None:
        events.write(json.dumps(figures, allow_nan=False) + "\n")
        events.flush()
