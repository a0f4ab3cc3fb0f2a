"""Trains small models of random tokens on several ranks of this machine, and on none of DeepSpeed's code at all.

The ranks are forked from one server process that has imported everything, so a training takes a second or two.
"""

import importlib
import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.contracts.finetune import Finetune
from pipeline.training.batches import make_schedule
from pipeline.training.engine import learning_rate, parameter_groups
from pipeline.training.launch import KEEP_FREED_MEMORY
from pipeline.training.loss import Collator, WeightedLoss
from pipeline.training.plan import Outcome, TrainingPlan
from pipeline.training.tokens import TokenFile, TokenWriter

VOCABULARY = 96
LONGEST = 24
REJECTED = range(VOCABULARY // 2, VOCABULARY)
BATCH = 8
STEPS = 20
DEADLINE_S = 240.0
IMPORTED_ONCE = [
    "torch", "deepspeed", "transformers", "pipeline.training.worker", "pipeline.training.trainers",
    # What these import when they are first used, in every rank: two thousand modules.
    "torch._inductor.standalone_compile", "torch.distributed.fsdp", "deepspeed.runtime.zero.muon.original_muon",
    "transformers.integrations.deepspeed", "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2", "transformers.models.qwen3.modeling_qwen3", "matplotlib.pyplot",
]  # fmt: skip


def context() -> Any:
    """Of processes that begin with IMPORTED_ONCE, and malloc as in a training; the first one to ask starts the
    server."""
    os.environ.update(KEEP_FREED_MEMORY, DS_ACCELERATOR="cpu")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(IMPORTED_ONCE)
    return server


def write_tokens(folder: Path, *, rows: int = BATCH * STEPS, pairs: bool = False) -> Path:
    """Rows of 6 to LONGEST tokens, whose next token depends on the last; the second half is the answer.

    Args:
        pairs: each of them is a chosen answer, followed by a row with the same prompt and an answer of REJECTED tokens.
    """
    random = np.random.default_rng(1)
    lengths = random.integers(6, LONGEST + 1, size=rows)
    writer = TokenWriter(folder, pairs=pairs, shard_tokens=1000)
    follows = random.integers(1, VOCABULARY, size=(VOCABULARY, 3))
    for length in lengths:
        ids = [int(random.integers(1, VOCABULARY))]
        while len(ids) < length:
            ids.append(int(follows[ids[-1], random.integers(3)]))
        lines = [np.array(ids, dtype=np.int32)]
        if pairs:
            other = random.choice(REJECTED, size=random.integers(1, LONGEST - length // 2 + 1)).astype(np.int32)
            lines.append(np.concatenate([lines[0][: length // 2], other]))
        answers = [np.arange(len(line)) >= length // 2 for line in lines]
        writer.add(np.concatenate(lines), np.concatenate(answers), np.array([len(line) for line in lines]))
    writer.close()
    return folder


def write_model(folder: Path, kind: str = "Llama", *, tied: bool = False, layers: int = 4, seed: int = 0) -> Path:
    """A random model in Hugging Face form.

    Args:
        kind: Llama, Qwen2 or Qwen3.
    """
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, head_dim=16, pad_token_id=0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Trained:
    """What a training left."""

    folder: Path

    @property
    def history(self) -> list[dict[str, float]]:
        lines = (self.folder / "out" / "training" / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    @property
    def outcome(self) -> Outcome:
        return Outcome.model_validate_json((self.folder / "outcome.json").read_bytes())

    @property
    def events(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]

    @property
    def log(self) -> str:
        """What the ranks printed."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("rank-*.log")))

    @property
    def losses(self) -> list[float]:
        return [record["loss"] for record in self.history]

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Of the saved model, loaded by transformers."""
        return logits_of_folder(self.folder / "out", ids)


def logits_of_folder(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(input_ids=ids).logits


def small(**changes: Any) -> Finetune:
    """STEPS steps of BATCH rows on one rank, in fp32."""
    fields = {
        "nodes": 1, "epochs": 1, "batch_size": BATCH, "max_seq_len": 32, "prompt_loss_weight": 0.25,
        "learning_rate": 1e-3, "checkpoint_every_steps": 1000,
    }  # fmt: skip
    return Finetune.model_validate({**fields, **changes})


@dataclass(frozen=True)
class ForcedSpeeds:
    """Takes the place of `gemm_flops_per_s`, on machines whose ranks are all equally fast."""

    by_rank: tuple[float, ...]

    def __call__(self, *_sizes: Any, **_options: Any) -> float:
        return self.by_rank[torch.distributed.get_rank()]


def train_on_ranks(settings: Finetune, model: Path, tokens: Path, folder: Path, **options: Any) -> Trained:
    """Trains on as many processes as `settings` have ranks, each a node of its own. Options as of `start_on_ranks`."""
    trained, codes = start_on_ranks(settings, model, tokens, folder, **options)
    assert not any(codes), f"the ranks ended with {codes}:\n{trained.log[-6000:]}"
    return trained


def start_on_ranks(
    settings: Finetune,
    model: Path,
    tokens: Path,
    folder: Path,
    *,
    instead: dict[str, Any] | None = None,
    **plan: Any,
) -> tuple[Trained, list[int | None]]:
    """Like `train_on_ranks`, but the training may fail.

    Args:
        instead: values of names in `pipeline.training`, such as {"engine.INITIAL_SCALE_POWER": 40}.

    Returns:
        What there is of the training, and the ranks' exit codes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = context()
    ranks = [
        server.Process(
            target=_rank,
            args=(make_plan(settings, model, tokens, folder, rank, **plan), settings.world_size, port, instead or {}),
        )
        for rank in range(settings.world_size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(DEADLINE_S)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    return Trained(folder), codes


def make_plan(
    settings: Finetune, model: Path, tokens: Path, folder: Path, rank: int = 0, **changes: Any
) -> TrainingPlan:
    plan = TrainingPlan(
        settings=settings,
        node_rank=rank,
        threads=1,
        model_path=model,
        fresh=False,
        tokens_path=tokens,
        checkpoints_uri=f"file://{folder}/store/checkpoints/key",
        checkpoints_path=folder / "checkpoints",
        events_path=folder / "events.jsonl",
        fault_path=folder / "fault.json",
        outcome_path=folder / "outcome.json",
        output_path=folder / "out",
    )
    return plan.model_copy(update=changes)


def _rank(plan: TrainingPlan, world_size: int, port: int, instead: dict[str, Any]) -> None:
    """One process of a training."""
    log = os.open(plan.fault_path.parent / f"rank-{plan.node_rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    places = {"RANK": plan.node_rank, "LOCAL_RANK": 0, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="127.0.0.1")
    from deepspeed.accelerator import get_accelerator

    from pipeline.training.worker import train

    # torch computes in fp16 on every processor; DeepSpeed refuses those that are slow at it.
    get_accelerator().is_fp16_supported = lambda: True
    for name, value in instead.items():
        module, _, attribute = name.rpartition(".")
        setattr(importlib.import_module(f"pipeline.training.{module}"), attribute, value)
    train(plan, 0)


def train_plainly(
    settings: Finetune, model: Path, tokens: Path, *, objective: Callable[[Any], Any] = WeightedLoss
) -> tuple[list[float], Any]:
    """The same steps in one process with nothing but torch.

    Returns:
        The loss of each step, and the trained module.
    """
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    trained = objective(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)).train()
    optimizer = torch.optim.AdamW(
        parameter_groups(trained, settings.weight_decay), lr=settings.learning_rate, betas=(0.9, 0.95), eps=1e-8
    )
    collator = Collator(TokenFile(tokens), pad_id=0, prompt_weight=settings.prompt_loss_weight)
    schedule = make_schedule(collator.tokens.lengths, settings)
    losses = []
    for step, sequences in enumerate(schedule.steps, start=1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(schedule.steps), settings)
        optimizer.zero_grad()
        loss = trained(collator.collate(sequences)) / collator.weight(sequences)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), settings.gradient_clipping)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, trained
