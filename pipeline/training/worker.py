"""One rank of a training. Started by torchrun:

    python -m pipeline.training.worker --plan PLAN.json --local-rank N

Reads the plan's model and tokens. The first rank writes the trained model, the outcome and the events; every rank
writes its part of checkpoints to the store. A fault that no restart would change is left in the plan's fault file.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.distributed.elastic.multiprocessing.errors import record

from pipeline.contracts.finetune import Dpo, Lora
from pipeline.errors import SlipwayError
from pipeline.processes import end_with_parent
from pipeline.settings import place_in_gang
from pipeline.training.plan import Outcome, TrainingPlan, write_fault

if TYPE_CHECKING:
    from pipeline.training.place import Place

LINES_AT_ONCE = 16
"""Rows in a forward pass that only looks at their likelihood."""


@record  # type: ignore[untyped-decorator]
def main() -> None:
    end_with_parent()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--local-rank", type=int, required=True)
    options = parser.parse_args()
    plan = TrainingPlan.load(options.plan)
    if plan.fault_path.exists():
        sys.exit("this training has ended with a fault")
    try:
        train(plan, options.local_rank)
    except SlipwayError as error:
        write_fault(plan.fault_path, error)
        raise


def train(plan: TrainingPlan, local_rank: int) -> None:
    """Trains as `plan` says; the first rank saves the result."""
    from torch import distributed

    from pipeline.training.batches import make_schedule
    from pipeline.training.engine import join, num_parameters, spread_from_the_start
    from pipeline.training.loop import Loop
    from pipeline.training.loss import Collator
    from pipeline.training.memory import PeakMemory
    from pipeline.training.model_size import ModelSize
    from pipeline.training.place import Place
    from pipeline.training.predicted import figures
    from pipeline.training.speeds import find_speeds
    from pipeline.training.tokens import TokenFile
    from pipeline.training.usage import Utilization

    plan, rank = present_gang(plan, local_rank)
    if local_rank == 0:
        plan.outcome_path.unlink(missing_ok=True)  # of an attempt in which the first rank was here
    set_up_torch(plan, local_rank)
    join(rank, plan.world_size, stall_timeout_s=plan.settings.stall_timeout_s)
    place = Place(rank, plan.world_size, plan.settings.parallelism)
    tokens = TokenFile(plan.tokens_path)
    memory = PeakMemory().start()
    with spread_from_the_start(plan.settings, place):
        model = load_model(plan)
    parameters, size = num_parameters(model), ModelSize.of(model)
    collator = Collator(
        tokens,
        pad_id=model.config.pad_token_id or 0,
        prompt_weight=plan.settings.prompt_loss_weight,
        packed=plan.settings.batching == "packing",
    )
    schedule = make_schedule(tokens.lengths, plan.settings)
    speeds = find_speeds(size, plan.settings, place, row_tokens=float(tokens.lengths.mean()))
    trainer = make_trainer(model, plan, place)
    if plan.settings.method == "dpo":
        collator.reference = trainer.likelihoods(
            collator, lines_at_once=trainer.engine.train_micro_batch_size_per_gpu()
        )
    started = time.monotonic()
    with plan.events_path.open("a") if rank == 0 else open("/dev/null", "w") as events:
        loop = Loop(plan, trainer, collator, schedule, place, events if rank == 0 else None)
        loop.speeds = speeds.of_data_ranks(place) if plan.settings.balance == "measured" else None
        loop.utilization = Utilization.against(speeds, size, tokens, plan.settings) if rank == 0 else None
        loop.run()
    seconds = time.monotonic() - started
    state = trainer.gather()
    if state is not None:
        save(plan, state, loop.history)
    memory.stop()
    if state is not None:
        took = figures(plan, loop.shares, place, tokens, measured=memory, speeds=speeds, resumed=loop.resumed_at > 0)
        outcome = summarise(loop, parameters, seconds)
        tell(plan, outcome, took)
        plan.outcome_path.write_text(outcome.model_dump_json())
    distributed.barrier()
    distributed.destroy_process_group()


def set_up_torch(plan: TrainingPlan, local_rank: int) -> None:
    """This rank's device and threads, and arithmetic that gives the same bits again."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    torch.set_num_threads(plan.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, and nothing reads such memory


def present_gang(plan: TrainingPlan, local_rank: int) -> tuple[TrainingPlan, int]:
    """The plan for the nodes that are there now, and this process's rank among theirs."""
    settings = plan.settings
    if settings.min_nodes is None:
        return plan, plan.node_rank * settings.procs_per_node + local_rank
    rank, world_size = place_in_gang()
    return plan.model_copy(update={"settings": settings.on_nodes(world_size // settings.procs_per_node)}), rank


def load_model(plan: TrainingPlan) -> Any:
    """The base model in fp32, or a new one with weights from the seed."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if not plan.fresh:
        return AutoModelForCausalLM.from_pretrained(plan.model_path, dtype=torch.float32, use_safetensors=True)
    torch.manual_seed(plan.settings.seed)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(plan.model_path), dtype=torch.float32)


def make_trainer(model: Any, plan: TrainingPlan, place: "Place") -> Any:
    """What trains `model` by the plan's method."""
    from pipeline.training import adapters
    from pipeline.training.loss import WeightedLoss
    from pipeline.training.objectives import DistillLoss, DpoLoss
    from pipeline.training.trainers import EngineTrainer, PipelineTrainer

    settings = plan.settings
    objective: WeightedLoss
    match settings.method:
        case "full" if settings.parallelism.pipeline > 1:
            return PipelineTrainer(model, settings, place)
        case "full":
            objective = WeightedLoss(model)
        case "lora":
            objective = WeightedLoss(adapters.add(model, settings.lora or Lora(), seed=settings.seed))
        case "distill":
            assert settings.distill is not None  # by the contract
            objective = DistillLoss(model, load_teacher(plan), settings.distill)
        case "dpo":
            objective = DpoLoss(model, settings.dpo or Dpo())
    return EngineTrainer(objective, settings, place)


def load_teacher(plan: TrainingPlan) -> Any:
    """The teacher, in the precision of the training; with ZeRO-3 spread over the ranks like the student."""
    import deepspeed
    import torch
    from transformers import AutoModelForCausalLM

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[plan.settings.precision]
    teacher = AutoModelForCausalLM.from_pretrained(plan.teacher_path, dtype=dtype, use_safetensors=True)
    teacher.eval().requires_grad_(False)
    if plan.settings.parallelism.zero < 3:
        return teacher.to(torch.cuda.current_device() if torch.cuda.is_available() else "cpu")
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": dtype is torch.bfloat16},
        "fp16": {"enabled": dtype is torch.float16},
        "steps_per_print": 10**9,
    }
    engine = deepspeed.initialize(model=teacher, config=config)[0]
    engine.eval()
    return engine


def summarise(loop: Any, parameters: int, seconds: float) -> Outcome:
    steps = loop.schedule.steps
    tail = loop.history[-max(1, len(steps) // 20) :]
    tokens = sum(loop.collator.num_tokens(step) for step in steps)
    trained = sum(loop.collator.num_tokens(step) for step in steps[loop.resumed_at :])
    return Outcome(
        steps=len(steps),
        parameters=parameters,
        final_train_loss=float(f"{sum(record['loss'] for record in tail) / len(tail):.6g}"),
        train_tokens=tokens,
        figures={
            "train_s": round(seconds, 3),
            "tokens_per_s": round(trained / seconds, 1),
            "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "resumed_at_step": float(loop.resumed_at),
            "checkpoint_stall_s": round(loop.stalled_s, 3),
            "skipped_steps": float(loop.num_skipped),
            **loop.shares.figures,
        },
    )


def tell(plan: TrainingPlan, outcome: Outcome, took: dict[str, float]) -> None:
    """Adds what the training took to its outcome; and to the events, for MLflow, with a picture of its steps' time."""
    from pipeline.training import step_time

    outcome.figures.update(took)
    with plan.events_path.open("a") as events:
        events.write(json.dumps({"step": outcome.steps, **took}) + "\n")
    step_time.plot(plan.events_path, plan.events_path.with_name(step_time.NAME))


def save(plan: TrainingPlan, state: dict[str, Any], history: list[dict[str, float]]) -> None:
    """Writes the trained model, or the adapter and its base model, and the losses."""
    from pipeline.adapter_files import FOLDER
    from pipeline.training import adapters
    from pipeline.training.export import save_history, save_model

    settings, target = plan.settings, plan.output_path
    if settings.method == "lora":
        lora, base = settings.lora or Lora(), load_model(plan)
        if lora.output == "adapter":
            save_model(base.state_dict(), plan.model_path, target, precision=settings.precision)
        model = adapters.add(base, lora, seed=settings.seed)
        if lora.output == "adapter":
            adapters.load(model, state)
            adapters.save(model, target / FOLDER)
        else:
            save_model(adapters.merged(model, state), plan.model_path, target, precision=settings.precision)
    else:
        save_model(state, plan.model_path, target, precision=settings.precision)
    save_history(history, target / "training")


if __name__ == "__main__":
    main()
