"""The training loops that tests/bench/training.py compares: ours, and what people write or take otherwise.

Each is made for one round: `run(steps)` takes WARM_UP_STEPS and then `steps` optimizer steps, and tells of the latter.
"""

import contextlib
import io
import json
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

WARM_UP_STEPS = 5
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
PAD_ID = 0
IGNORED = -100


@dataclass(frozen=True)
class Round:
    """What some optimizer steps took on this rank."""

    seconds: float
    cpu_s: float
    """Of the process, with all its threads: waiting costs none, so another program on the machine changes it little."""
    tokens: float
    """Real ones, without padding."""
    phases: dict[str, float] = field(default_factory=dict)
    """Where the time went, as shares of it; empty for a loop that does not say."""


@dataclass(frozen=True)
class Work:
    """The same for every loop."""

    folder: Path
    """The model's config and tokenizer in base/, the rows in tokens/."""
    rank: int
    ranks: int
    batch_size: int
    """Rows an optimizer step, over all ranks."""
    sequence: int
    """Tokens of a packed sequence."""
    device: str = "cpu"
    precision: str = "fp32"
    method: str = "full"
    scratch: Path = Path()

    def tokens(self) -> Any:
        from pipeline.training.tokens import TokenFile

        return TokenFile(self.folder / "tokens")

    def rows(self) -> Any:
        """As Hugging Face's trainers take them; labels on the answers alone."""
        return _dataset(self.folder / "tokens")

    def settings(self, *, packed: bool) -> Any:
        from pipeline.contracts.finetune import Finetune

        return Finetune(
            nodes=self.ranks,
            epochs=64,
            precision=self.precision,
            method=self.method,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            batch_size=self.packed_batch_size if packed else self.batch_size,
            batching="packing" if packed else "length_grouped",
            max_seq_len=self.sequence,
        )

    @property
    def packed_batch_size(self) -> int:
        """Packed sequences with as many tokens as `batch_size` rows, the same number on every rank."""
        mean = float(self.tokens().lengths.mean())
        return self.ranks * max(1, round(self.batch_size * mean / self.sequence / self.ranks))

    def new_model(self) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        # What is trained keeps its weights in fp32; what is frozen needs no more than the precision of the products.
        frozen = self.method == "lora" and self.precision == "bf16"
        dtype = torch.bfloat16 if frozen else torch.float32
        config = AutoConfig.from_pretrained(self.folder / "base")
        return AutoModelForCausalLM.from_config(config, dtype=dtype).to(self.device).train()

    def now(self) -> tuple[float, float]:
        """Seconds of the wall's clock and of this process's, when the device and the other ranks are done."""
        import torch
        from torch import distributed

        if self.device != "cpu":
            torch.cuda.synchronize()
        if distributed.is_initialized():
            distributed.barrier()
        return time.perf_counter(), time.process_time()

    def since(self, started: tuple[float, float], tokens: float, phases: dict[str, float] | None = None) -> Round:
        """Args: phases: seconds, of some of the steps at least."""
        ended = self.now()
        total = sum((phases or {}).values())
        shares = {phase: seconds / total for phase, seconds in (phases or {}).items()}
        return Round(ended[0] - started[0], ended[1] - started[1], tokens, shares)


@cache
def _dataset(tokens_path: Path) -> Any:
    import numpy as np
    from datasets import Dataset

    from pipeline.training.tokens import TokenFile

    tokens = TokenFile(tokens_path)
    rows = [tokens.row(index) for index in range(len(tokens.lengths))]
    return Dataset.from_dict(
        {
            "input_ids": [ids.tolist() for ids, _ in rows],
            "labels": [np.where(is_answer, ids, IGNORED).tolist() for ids, is_answer in rows],
        }
    )


class Ours:
    """The finetune step's own loop, exchange of losses, schedule, clock and all."""

    def __init__(self, work: Work, *, packed: bool, flat_step: bool = True) -> None:
        """Args: flat_step: over flat buffers, as the step does it; or through DeepSpeed's own engine."""
        from pipeline.contracts.finetune import Lora
        from pipeline.training import adapters
        from pipeline.training.batches import make_schedule
        from pipeline.training.loop import Loop
        from pipeline.training.loss import Collator, WeightedLoss
        from pipeline.training.place import Place
        from pipeline.training.plan import TrainingPlan
        from pipeline.training.trainers import EngineTrainer

        names = ("model_path", "tokens_path", "checkpoints_path", "events_path", "fault_path", "outcome_path")
        paths = dict.fromkeys((*names, "output_path"), work.folder / "nowhere")
        settings = work.settings(packed=packed)
        uri = f"file://{work.folder}/checkpoints/key"
        plan = TrainingPlan(settings=settings, node_rank=work.rank, threads=1, fresh=True, checkpoints_uri=uri, **paths)
        place = Place(work.rank, work.ranks, settings.parallelism)
        model = work.new_model()
        if work.method == "lora":
            model = adapters.add(model, settings.lora or Lora(), seed=settings.seed)
        with contextlib.nullcontext() if flat_step else patch("pipeline.training.flat.applies_to", return_value=False):
            trainer = EngineTrainer(WeightedLoss(model), settings, place)
        collator = Collator(work.tokens(), pad_id=PAD_ID, prompt_weight=0.0)
        schedule = make_schedule(collator.tokens.lengths, settings)
        self._work = work
        self._events = io.StringIO()
        self._loop = Loop(plan, trainer, collator, schedule, place, self._events if work.rank == 0 else None)

    def run(self, steps: int) -> Round:
        from pipeline.training.loop import EXCHANGE_STEPS

        loop, work = self._loop, self._work
        started = work.now()
        # The loop tells of its progress, which counts as its work; the figures here are for programs.
        with contextlib.redirect_stdout(io.StringIO()):
            for step in range(1, WARM_UP_STEPS + steps + 1):
                if step == WARM_UP_STEPS + 1:
                    started = work.now()
                loop.optimizer_step(step)
                if step % EXCHANGE_STEPS == 0:
                    loop.exchange(step)
        timed = loop.schedule.steps[WARM_UP_STEPS : WARM_UP_STEPS + steps]
        return work.since(started, sum(loop.collator.num_tokens(step) for step in timed) / work.ranks, self._phases())

    def _phases(self) -> dict[str, float]:
        """What the loop told of the first rank's steps, but for the first few."""
        told = [json.loads(line) for line in self._events.getvalue().splitlines()[1:]]
        names = sorted({name for line in told for name in line if name.startswith("time/")})
        return {name[len("time/") : -len("_s")]: sum(line[name] for line in told) for name in names}


class BareDdp:
    """The shortest competent loop: our batches, torch's own loss, DistributedDataParallel, fused AdamW."""

    def __init__(self, work: Work, *, overlap: bool = True) -> None:
        """Args: overlap: gradients are exchanged beside the backward pass; or all at once after it."""
        import torch
        from torch.nn.parallel import DistributedDataParallel

        from pipeline.training.batches import make_schedule
        from pipeline.training.clock import Clock
        from pipeline.training.loss import Collator

        self._work = work
        self._clock = Clock(torch.device(work.device))
        self._collator = Collator(work.tokens(), pad_id=PAD_ID, prompt_weight=0.0)
        self._schedule = make_schedule(self._collator.tokens.lengths, work.settings(packed=False))
        model = work.new_model()
        self._model = DistributedDataParallel(model) if work.ranks > 1 and overlap else model
        self._afterwards = work.ranks > 1 and not overlap
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
        )

    def run(self, steps: int) -> Round:
        started = self._work.now()
        for index in range(WARM_UP_STEPS + steps):
            if index == WARM_UP_STEPS:
                started = self._work.now()
                self._clock.take()
            self._step(index)
        timed = self._schedule.steps[WARM_UP_STEPS : WARM_UP_STEPS + steps]
        tokens = sum(self._collator.num_tokens(step) for step in timed) / self._work.ranks
        return self._work.since(started, tokens, self._clock.take())

    def _step(self, index: int) -> None:
        import torch
        from torch.nn.functional import pad

        work, lap = self._work, self._clock.lap
        self._clock.start()
        batch = self._collator.collate(self._schedule.share(index, work.rank, work.ranks)).to(torch.device(work.device))
        # transformers shifts labels itself: each lies one place after the token that predicts it.
        labels = pad(torch.where(batch.weights > 0, batch.targets, IGNORED)[:, :-1], (1, 0), value=IGNORED)
        lap("data")
        loss = self._model(input_ids=batch.ids, labels=labels, use_cache=False).loss
        lap("forward")
        loss.backward()
        lap("backward")  # and what DDP sends meanwhile
        if self._afterwards:
            self._exchange()
        lap("communication")
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        lap("optimizer")

    def _exchange(self) -> None:
        """The mean of all ranks' gradients, in one message."""
        import torch
        from torch import distributed

        gradients = [parameter.grad for parameter in self._model.parameters()]
        flat = torch.cat([gradient.flatten() for gradient in gradients]) / self._work.ranks
        distributed.all_reduce(flat)
        for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


class HuggingFace:
    """transformers' Trainer with rows grouped by length, or TRL's SFTTrainer with its own packing."""

    def __init__(self, work: Work, *, packed: bool) -> None:
        self._work = work
        self._packed = packed

    def run(self, steps: int) -> Round:
        from transformers import PrinterCallback

        meter = _Meter(self._work)
        trainer = self._sft(steps) if self._packed else self._trainer(steps)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(meter.callback())
        collate = trainer.data_collator
        trainer.data_collator = lambda rows: meter.count(rows, collate)
        trainer.train()
        assert meter.round is not None, "the trainer ended before its last step"
        return meter.round

    def _model(self) -> Any:
        from peft import LoraConfig, get_peft_model

        model = self._work.new_model()
        if self._work.method != "lora":
            return model
        return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", bias="none"))

    def _arguments(self, batch_size: int, steps: int) -> dict[str, Any]:
        work = self._work
        return {
            "output_dir": str(work.scratch / "huggingface"),
            "per_device_train_batch_size": batch_size // work.ranks,
            "max_steps": WARM_UP_STEPS + steps,
            "use_cpu": work.device == "cpu",
            "bf16": work.precision == "bf16",
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "max_grad_norm": 1.0,
            "lr_scheduler_type": "cosine",
            "optim": "adamw_torch_fused",
            "logging_steps": 10,
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": work.device != "cpu",
            "dataloader_drop_last": True,
            "ddp_find_unused_parameters": False,
            "seed": 0,
        }

    def _trainer(self, steps: int) -> Any:
        from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

        arguments = self._arguments(self._work.batch_size, steps)
        return Trainer(
            model=self._model(),
            args=TrainingArguments(**arguments, train_sampling_strategy="group_by_length"),
            train_dataset=self._work.rows(),
            data_collator=DataCollatorForSeq2Seq(self._tokenizer()),
        )

    def _sft(self, steps: int) -> Any:
        from trl import SFTConfig, SFTTrainer

        arguments = self._arguments(self._work.packed_batch_size, steps)
        return SFTTrainer(
            model=self._model(),
            args=SFTConfig(**arguments, packing=True, max_length=self._work.sequence),
            train_dataset=self._work.rows(),
            processing_class=self._tokenizer(),
        )

    def _tokenizer(self) -> Any:
        from pipeline.training.base_model import load_tokenizer

        return load_tokenizer(self._work.folder / "base")


class _Meter:
    """Times the steps after the warm-up, and counts their tokens as they are collated."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._batches: list[int] = []
        self._started = (0.0, 0.0)
        self.round: Round | None = None

    def count(self, rows: list[dict[str, Any]], collate: Any) -> Any:
        self._batches.append(sum(len(row["input_ids"]) for row in rows))
        return collate(rows)

    def callback(self) -> Any:
        from transformers import TrainerCallback

        meter = self

        class Timed(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == WARM_UP_STEPS:
                    meter._started = meter._work.now()
                if state.global_step == state.max_steps:
                    tokens = float(sum(meter._batches[WARM_UP_STEPS : state.max_steps]))
                    meter.round = meter._work.since(meter._started, tokens)

        return Timed()
