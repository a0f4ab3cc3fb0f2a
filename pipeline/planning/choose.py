"""Which parallelism: all that the ranks allow are forecast, those that do not fit are dropped, the fastest is taken."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from pydantic import ValidationError

from pipeline.contracts.finetune import Finetune, Parallelism
from pipeline.planning.forecasts import Forecast, forecast
from pipeline.planning.hardware import Hardware
from pipeline.planning.shapes import ModelShape
from pipeline.planning.spread import misfit
from pipeline.planning.workload import Workload

Verdict = Literal["chosen", "not simpler", "slower", "too large", "tight", "does not work"]
FILLED = 0.9
"""Of the memory, the most that a choice may be expected to take: a forecast may be wrong by 15 % (docs/benchmarks.md),
and what a recipe asks for by itself may take all."""
AS_FAST = 0.1
"""Steps whose expected times differ by less count as equally long, since no estimate tells them apart: then the
simpler one wins."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One parallelism that was considered."""

    parallelism: Parallelism
    verdict: Verdict
    reason: str
    forecast: Forecast | None = None
    """None if it does not work."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The candidates, the chosen one first, then by expected speed; those that do not work last."""

    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Forecast | None:
        first = self.candidates[0]
        return first.forecast if first.verdict == "chosen" else None

    @property
    def smallest(self) -> Forecast | None:
        """What needs least memory, as a fraction of what there is."""
        worked = [candidate.forecast for candidate in self.candidates if candidate.forecast]
        return min(worked, key=lambda forecast: forecast.filled, default=None)


def choose(work: Workload, hardware: Hardware) -> Choice:
    """Compares every way to spread `work` over its ranks."""
    forecasts, refused = [], []
    for parallelism in spreads(work.settings.world_size):
        problem = refusal(work.shape, work.settings, parallelism)
        if problem:
            refused.append(Candidate(parallelism=parallelism, verdict="does not work", reason=problem))
        else:
            forecasts.append(forecast(work.spread(parallelism), hardware))
    fitting = [found for found in forecasts if not found.excess and found.filled <= FILLED]
    best = _best(fitting) if fitting else None
    judged = [_judged(found, best) for found in sorted(forecasts, key=lambda found: _order(found, best))]
    return Choice(candidates=(*judged, *refused))


def spreads(ranks: int) -> Iterator[Parallelism]:
    """Every product of slices, stages and parts that divides the ranks, with every stage of ZeRO."""
    for tensor in _divisors(ranks):
        for pipeline in _divisors(ranks // tensor):
            for sequence in _divisors(ranks // tensor // pipeline):
                for zero in get_args(Parallelism.model_fields["zero"].annotation):
                    yield Parallelism(zero=zero, tensor=tensor, pipeline=pipeline, sequence=sequence)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, min(number, 1024) + 1) if number % divisor == 0]


def refusal(shape: ModelShape, settings: Finetune, parallelism: Parallelism) -> str:
    """Why the recipe or the model does not allow this parallelism; empty if they do."""
    try:
        Finetune.model_validate({**settings.model_dump(), "parallelism": parallelism.model_dump()})
    except ValidationError as error:
        return error.errors()[0]["msg"].removeprefix("Value error, ")
    return misfit(
        parallelism,
        kind=shape.kind,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        num_layers=shape.num_layers,
        has_windows=shape.has_windows,
    )


def _simplicity(found: Forecast) -> tuple[int, int, float]:
    return found.parallelism.model_ranks, found.parallelism.zero, found.memory.device


def _best(fitting: list[Forecast]) -> Forecast:
    """The simplest of those that are about as fast as the fastest."""
    limit = min(found.time.total_s for found in fitting) * (1 + AS_FAST)
    return min((found for found in fitting if found.time.total_s <= limit), key=_simplicity)


def _order(found: Forecast, best: Forecast | None) -> tuple[bool, bool, float]:
    return found is not best, bool(found.excess), found.time.total_s


def _judged(found: Forecast, best: Forecast | None) -> Candidate:
    verdict: Verdict
    if found is best:
        verdict, reason = "chosen", "the simplest of the fastest that fit"
    elif found.excess:
        verdict, reason = "too large", f"needs {found.filled:.0%} of the memory"
    elif found.filled > FILLED:
        verdict, reason = "tight", f"needs {found.filled:.0%} of the memory; a choice may take {FILLED:.0%}"
    else:
        assert best is not None
        times = found.time.total_s / best.time.total_s
        if times <= 1 + AS_FAST:
            verdict, reason = "not simpler", "about as fast as the chosen one"
        else:
            verdict, reason = "slower", f"a step takes {times:.2f} times as long"
    return Candidate(parallelism=found.parallelism, verdict=verdict, reason=reason, forecast=found)


def remedies(work: Workload, hardware: Hardware) -> tuple[str, ...]:
    """What to change in a recipe that does not fit, each enough by itself; if nothing is, several together."""
    alone: dict[str, str] = {}
    for field, text, changed in (*_easings(work), *_more_nodes(work)):
        if field not in alone and _fits(_changed(work, changed), _of(hardware, changed)):
            alone[field] = text
    if alone:
        return tuple(alone.values())
    together: dict[str, object] = {}
    texts: dict[str, str] = {}
    for field, text, changed in _easings(work):
        together, texts = {**together, **changed}, {**texts, field: text}
        if _fits(_changed(work, together), hardware):
            return (" and ".join(texts.values()),)
    return ()


def _fits(work: Workload, hardware: Hardware) -> bool:
    if work.settings.parallelism.auto:
        return choose(work, hardware).chosen is not None
    try:
        Finetune.model_validate(work.settings.model_dump())
    except ValidationError:
        return False
    return not forecast(work, hardware).excess


def _changed(work: Workload, changed: dict[str, object]) -> Workload:
    return replace(work, settings=work.settings.model_copy(update=changed))


def _of(hardware: Hardware, changed: dict[str, object]) -> Hardware:
    nodes = changed.get("nodes", hardware.nodes)
    assert isinstance(nodes, int)
    return replace(hardware, nodes=nodes)


def _easings(work: Workload) -> Iterator[tuple[str, str, dict[str, object]]]:
    """Changes of settings that save memory, those that cost least first: field, text and the settings' update."""
    settings = work.settings
    if not settings.activation_checkpointing:
        field = "activation_checkpointing"
        yield field, f"finetune.{field}: true", {field: True}
    for times in (2, 4, 8, 16, 32, 64):
        field, micro_batches = "gradient_accumulation", settings.gradient_accumulation * times
        if settings.batch_size % micro_batches == 0:
            yield field, f"finetune.{field}: {micro_batches}", {field: micro_batches}
    if settings.precision == "fp32":
        yield "precision", "finetune.precision: bf16", {"precision": "bf16"}
    if work.accelerated and not settings.offload.optimizer:
        offload = settings.offload.model_copy(update={"optimizer": True})
        yield "offload", "finetune.offload.optimizer: true", {"offload": offload}
    if settings.method == "full":
        yield "method", "finetune.method: lora", {"method": "lora"}


def _more_nodes(work: Workload) -> Iterator[tuple[str, str, dict[str, object]]]:
    for times in (2, 4, 8):
        nodes, fewest = work.settings.nodes * times, work.settings.min_nodes
        if fewest is None:
            yield "nodes", f"finetune.nodes: {nodes}", {"nodes": nodes}
        else:
            text = f"finetune.nodes: {nodes} with min_nodes: {fewest * times}"
            yield "nodes", text, {"nodes": nodes, "min_nodes": fewest * times}
