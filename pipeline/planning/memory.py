"""Bytes that one rank needs: what it keeps, what it takes to load, save and go on, and what its allocator holds.

The states follow Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
section 3. What comes and goes in a step is in `step_memory`.
"""

from dataclasses import dataclass

from pipeline.planning.amounts import NOTHING, Amount
from pipeline.planning.moments import KINDS, STEADY, Moment, end_to_end, one_by_one
from pipeline.planning.shapes import ModelShape
from pipeline.planning.step_memory import step_moments
from pipeline.planning.workload import BYTES_PER_VALUE, Held, Stage, Workload

MOMENT_BYTES = 4
"""Of each of Adam's two moments, and of the copy of a parameter that it updates: fp32 in every precision."""

MB, GB = 10**6, 10**9
CORES_FRAMEWORK = {0: 25 * MB, 1: 72 * MB, 2: 72 * MB, 3: 72 * MB}
"""That libraries take after the model is loaded, by stage of ZeRO, as measured; ZeRO's optimizer imports torch's
compiler."""
CORES_PROCESS = 420 * MB
"""What is resident of a rank beside that, as measured: Python and the libraries, their files' pages included."""
CORES_NODE = 400 * MB
"""The step and torchrun's agent beside a node's ranks, as measured: 95 and 234 MB, and what the step reads."""
ACCELERATOR_FRAMEWORK = 1.5 * GB
"""An estimate of the context of an accelerator, its kernels and the buffers of NCCL."""


@dataclass(frozen=True, kw_only=True)
class States:
    """Bytes of the model's states on one rank."""

    parameters: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.optimizer


def model_states(trained: float, *, precision: str, zero: int, ranks: int, frozen: float = 0) -> States:
    """Parameters, gradients and Adam's state.

    Rajbhandari et al. 2020, section 3.1 and figure 1: with Ψ parameters in 16 bits, 2Ψ + 2Ψ + 12Ψ bytes; stage 1
    divides the 12Ψ among the ranks, stage 2 the gradients' 2Ψ too, stage 3 the parameters' 2Ψ too. In fp32 a
    parameter is its own master copy without ZeRO; DeepSpeed's stages keep a second one all the same.

    Args:
        frozen: parameters that are not trained.
    """
    value = BYTES_PER_VALUE[precision]
    per_parameter = 2 * MOMENT_BYTES if precision == "fp32" and zero == 0 else 3 * MOMENT_BYTES
    return States(
        parameters=value * (trained + frozen) / (ranks if zero >= 3 else 1),
        gradients=value * trained / (ranks if zero >= 2 else 1),
        optimizer=per_parameter * trained / (ranks if zero >= 1 else 1),
    )


SCATTERED = 0.1
"""Of what small tensors take, so much more is lost between them."""


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """The memory of a rank of one stage."""

    stage: Stage
    moments: tuple[Moment, ...]
    accelerated: bool
    framework: float
    host: float
    """In the machine's memory beside the accelerator: what is kept there between steps, and the model while it is
    loaded. On cores, what the process takes before, and weights that stay in their files' pages (`_mapped`)."""

    def kept(self, moment: Moment) -> float:
        """Bytes that are free at `moment` and that the allocator has not given back.

        On cores the freed small blocks of one kind are seldom of use to another, so each kind keeps the most that it
        had, and some of it is scattered; and malloc never holds less than it once held. torch's allocator for
        accelerators counts what is in use alone.
        """
        if self.accelerated:
            return 0.0
        most = {kind: max(other.amounts[kind].small for other in self.moments) for kind in KINDS}
        unused = sum(most[kind] - moment.amounts[kind].small for kind in KINDS if kind not in STEADY)
        held = max(other.arena for other in self.moments)
        return max(unused + SCATTERED * sum(most.values()), held - moment.arena + moment.holes)

    @property
    def peak(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.alive + self.kept(moment))

    @property
    def rise(self) -> float:
        """The most that training adds to a rank: what `pipeline.training.memory` measures, the framework's own on an
        accelerator apart."""
        return self.peak.alive + self.kept(self.peak) + (0.0 if self.accelerated else self.framework)

    @property
    def device(self) -> float:
        """The most that a rank takes of what it computes in."""
        return self.rise + (self.framework if self.accelerated else self.host)


def rank_memory(work: Workload) -> RankMemory:
    """Of the rank that needs most."""
    return max((stage_memory(work, stage) for stage in work.stages), key=lambda memory: memory.device)


def stage_memory(work: Workload, stage: Stage) -> RankMemory:
    zero = work.settings.parallelism.zero
    # An accelerator's copy of what is offloaded is gone between uses: on cores it is the same memory.
    states, copies = _resident(work, stage), _saved(work, stage)
    steps = tuple(_with(states, moment) for moment in step_moments(work, stage))
    if work.accelerated:
        kept_beside = _offloaded(work, stage).total + copies.total + _gathered_model(work, stage).total
        host = CORES_PROCESS + max(_loaded(work).alive, _read(work, stage).total, kept_beside)
        return RankMemory(stage=stage, moments=steps, accelerated=True, framework=ACCELERATOR_FRAMEWORK, host=host)
    moments = (
        _loaded(work),
        *((_with(states, Moment(name="checkpoint read", copies=_read(work, stage))),) if work.resumes else ()),
        *(_with(Moment(name=moment.name, copies=copies), moment) for moment in steps),
        _with(states, Moment(name="model saved", copies=copies + _gathered_model(work, stage))),
    )
    framework, host = float(CORES_FRAMEWORK[zero]), CORES_PROCESS + _mapped(work, stage)
    return RankMemory(stage=stage, moments=moments, accelerated=False, framework=framework, host=host)


def _with(states: Moment, moment: Moment) -> Moment:
    """Both together, under the second's name."""
    sums = {kind: amount + moment.amounts[kind] for kind, amount in states.amounts.items()}
    return Moment(name=moment.name, holes=moment.holes, **sums)


def _loaded(work: Workload) -> Moment:
    """Every rank reads the whole model in fp32, and hands on what it keeps; with ZeRO-3 it keeps its share at once,
    unless the layers are to be sliced first."""
    spread = work.settings.parallelism
    model = NOTHING if _stays_in_file(work, work.shape) else _whole(work.shape)
    if work.teacher is not None and not _stays_in_file(work, work.teacher):
        model += _whole(work.teacher)
    share = 1 / work.sharing_ranks if spread.zero == 3 and spread.tensor == 1 else 1
    return Moment(name="model loaded", parameters=model * share)


def _resident(work: Workload, stage: Stage) -> Moment:
    """Parameters and optimizer state, which stay from step to step."""
    settings, held = work.settings, work.held(stage)
    zero, ranks = settings.parallelism.zero, work.sharing_ranks
    if zero == 0:
        copies = 2 if settings.precision == "fp32" else 3
        parameters, optimizer = one_by_one(held, work.value_bytes), one_by_one(held, MOMENT_BYTES, copies)
    else:
        value = work.value_bytes / (ranks if zero == 3 else 1)
        parameters, optimizer = end_to_end(held, value), end_to_end(held, MOMENT_BYTES / ranks, 3)
    parameters += _untrained(work, held)
    if work.accelerated:  # what is offloaded comes for the time of its use alone
        parameters = NOTHING if settings.offload.parameters else parameters
        optimizer = NOTHING if settings.offload.optimizer else optimizer
    return Moment(name="between steps", parameters=parameters, optimizer=optimizer)


def _saved(work: Workload, stage: Stage) -> Amount:
    """The copy of its share of the state that a rank writes a checkpoint from, and keeps for the next one: weights and
    two moments in fp32 (see `pipeline.training.checkpoints`)."""
    if not work.saves:
        return NOTHING
    return one_by_one(work.held(stage), MOMENT_BYTES / work.sharing_ranks, 3)


def _read(work: Workload, stage: Stage) -> Amount:
    """What a rank has read of a checkpoint before it goes on from it: without ZeRO all ranks hold all."""
    share = work.sharing_ranks if work.settings.parallelism.zero else 1
    return one_by_one(work.held(stage), MOMENT_BYTES / share, 3)


def _gathered_model(work: Workload, stage: Stage) -> Amount:
    """What the first rank collects of the trained model to write it, where it has not all of it by itself; and for
    adapters the base model, loaded once more."""
    settings, parallelism = work.settings, work.settings.parallelism
    if stage.index:
        return NOTHING
    elsewhere = parallelism.zero == 3 or parallelism.tensor > 1 or parallelism.pipeline > 1
    if settings.method == "lora":
        merges = settings.lora is None or settings.lora.output == "merged"
        base = NOTHING if _stays_in_file(work, work.shape) and not merges else _whole(work.shape)
        return base + (one_by_one(work.held(stage), work.value_bytes) if elsewhere else NOTHING)
    return _whole(work.shape) * (work.value_bytes / 4) if elsewhere or work.accelerated else NOTHING


def _untrained(work: Workload, held: Held) -> Amount:
    """Frozen parameters beside adapters, and a teacher: shared out by ZeRO-3 alone."""
    shape, value = work.shape, work.value_bytes / (work.sharing_ranks if work.settings.parallelism.zero == 3 else 1)
    total = NOTHING
    if not _stays_in_file(work, shape):
        total += Amount.of((value * held.frozen, value * shape.layer_linear / len(shape.linears)))
    if work.teacher is not None and not _stays_in_file(work, work.teacher):
        total += _whole(work.teacher) * (value / 4)
    return total


def _stays_in_file(work: Workload, model: ModelShape) -> bool:
    """Whether weights that nothing writes to are pages of the file that they were read from: safetensors maps it into
    memory, and a tensor that is wanted in the file's own type is not copied. What is trained is written to at once.
    (Beside adapters DeepSpeed sends the first rank's weights to the others, where they are memory of the process.)"""
    trained = model is work.shape and work.settings.method != "lora"
    on_cores = not work.accelerated and work.settings.parallelism.zero < 3
    return on_cores and not trained and model.stored == work.settings.precision


def _mapped(work: Workload, stage: Stage) -> float:
    """Bytes of such weights. The kernel can take them back, and a training that has to read them again crawls."""
    frozen = work.held(stage).frozen if _stays_in_file(work, work.shape) else 0
    teacher = work.teacher.parameters if work.teacher and _stays_in_file(work, work.teacher) else 0
    return float(work.value_bytes * (frozen + teacher))


def _whole(shape: ModelShape) -> Amount:
    """A model in fp32, each parameter in a tensor of its own."""
    layer = [*(inputs * outputs for inputs, outputs in shape.linears.values()), shape.layer - shape.layer_linear]
    sizes = [shape.embedding, *layer * shape.num_layers, shape.hidden_size, shape.head]
    return Amount.of(*((4.0 * size, 4.0 * size) for size in sizes))


def _offloaded(work: Workload, stage: Stage) -> Amount:
    """What a rank keeps in its machine's memory beside an accelerator: states, and gradients on their way to them."""
    settings, held = work.settings, work.held(stage)
    zero, ranks = settings.parallelism.zero, work.sharing_ranks
    states = model_states(held.trained, frozen=held.frozen, precision=settings.precision, zero=zero, ranks=ranks)
    optimizer = states.optimizer + (MOMENT_BYTES + work.value_bytes) * held.trained / ranks
    return Amount(optimizer * settings.offload.optimizer + states.parameters * settings.offload.parameters)
