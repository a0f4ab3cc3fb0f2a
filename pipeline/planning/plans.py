"""The plan of a recipe's fine-tuning: the forecast of the parallelism that it asks for, or the choice of one."""

from dataclasses import dataclass

from pipeline.contracts.cluster import Cluster
from pipeline.contracts.finetune import Finetune
from pipeline.contracts.recipe import Recipe
from pipeline.errors import SpecError
from pipeline.planning.choose import Choice, choose, refusal, remedies
from pipeline.planning.forecasts import Forecast, forecast
from pipeline.planning.hardware import GB, Hardware, of_recipe
from pipeline.planning.shapes import ModelShape
from pipeline.planning.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training will take, as far as it can be said before it runs."""

    work: Workload
    hardware: Hardware
    choice: Choice
    expected: Forecast | None
    """Of the recipe's own parallelism, or of the chosen one; None if a choice was wanted and nothing fits."""

    @property
    def settings(self) -> Finetune:
        """With a concrete parallelism.

        Raises:
            SpecError: nothing fits.
        """
        self.check()
        assert self.expected is not None
        return self.expected.work.settings

    @property
    def problem(self) -> str:
        """Why it cannot be trained so; empty if it can."""
        if self.expected is not None:
            return self.expected.excess
        smallest = self.choice.smallest
        if smallest is None:
            return self.choice.candidates[0].reason
        return f"the parallelism that needs least ({describe(smallest)}) fills {smallest.filled:.0%} of the memory"

    @property
    def remedies(self) -> tuple[str, ...]:
        """What to change so that it fits, each enough by itself; none where it does."""
        if not self.problem:
            return ()
        changes = [*remedies(self.work, self.hardware)]
        if self.expected is not None and self.choice.chosen is not None:
            changes.insert(0, f"finetune.parallelism: auto, which would choose {describe(self.choice.chosen)}")
        needed = self.expected or self.choice.smallest
        if needed is not None:
            changes.append(_more_memory(needed))
        return tuple(changes)

    def check(self) -> None:
        """Refuses a training that does not fit.

        Raises:
            SpecError: with the figures, and with what to change.
        """
        if self.problem:
            raise SpecError(f"finetune does not fit: {self.problem}. Enough would be: {'; or '.join(self.remedies)}")


def plan_training(
    recipe: Recipe,
    shape: ModelShape,
    *,
    teacher: ModelShape | None = None,
    cluster: Cluster | None = None,
    cores: int | None = None,
) -> Plan:
    """Of `recipe`, whose base model has `shape`.

    Args:
        cluster: what it runs on, instead of what the recipe says.
        cores: of this machine, where the recipe names none.

    Raises:
        SpecError: a parallelism that the model's sizes do not allow, or a cluster that is not described.
    """
    settings, hardware = recipe.finetune, of_recipe(recipe, cluster, cores=cores)
    work = Workload(
        shape=shape,
        settings=settings,
        sequence_tokens=settings.max_seq_len,
        accelerated=hardware.accelerated,
        teacher=teacher,
    )
    choice = choose(work, hardware)
    if settings.parallelism.auto:
        return Plan(work=work, hardware=hardware, choice=choice, expected=choice.chosen)
    problem = refusal(shape, settings, settings.parallelism)
    if problem:
        raise SpecError(f"finetune.parallelism: {problem}")
    return Plan(work=work, hardware=hardware, choice=choice, expected=forecast(work, hardware))


def describe(found: Forecast) -> str:
    """`zero 1, tensor 2`."""
    spread = found.parallelism
    degrees = [f"{kind} {getattr(spread, kind)}" for kind in ("tensor", "pipeline", "sequence")]
    return ", ".join([f"zero {spread.zero}", *(text for text in degrees if not text.endswith(" 1"))])


def _more_memory(found: Forecast) -> str:
    if found.hardware.accelerated and found.memory.device > found.hardware.rank_bytes:
        return f"accelerators of {found.memory.device / GB:.1f} GB"
    return f"resources.finetune.memory_gb: {found.node_bytes / GB + 0.05:.1f}"
