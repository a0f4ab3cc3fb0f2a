"""What a rollout in its phase `shift` sees right now: `home/fleet/judgements/<model>.json`, rewritten every second.

Reading needs no lock: the file is only ever replaced as a whole. The last judgement of each rollout stays in the
fleet's state (`Rollout.comparisons`).

    from pipeline.fleet.analysis.live import read_judgement, view_fleet
    read_judgement(home_path, "banking77").comparisons
    view_fleet(home_path).models["banking77"].serving
"""

from pathlib import Path

from pydantic import ValidationError

from pipeline.contracts.base import Contract
from pipeline.errors import SpecError
from pipeline.fleet.analysis.comparison import Comparison
from pipeline.fleet.state import ModelFleet, fault, model_paths, read_model
from pipeline.fleet.views import ModelView, view_models
from pipeline.stack.layout import Layout
from pipeline.whole_files import write_atomically


class Judgement(Contract):
    """One step as it stands."""

    model: str
    generation: int
    version: str
    """On trial."""
    stable_version: str | None
    step: int
    """Index of the traffic step, from 0."""
    weight: int
    """The canary's share of the traffic, in per cent."""
    began_at: float
    """When the step began, in seconds of Unix time."""
    updated_at: float
    client_requests: int
    """What clients asked the canary in this step."""
    probes: int
    """What the rollout asked it itself."""
    finding: str
    """undecided, healthy or unhealthy."""
    reason: str
    comparisons: tuple[Comparison, ...] = ()


def judgement_path(home_path: Path, name: str) -> Path:
    return Layout(Path(home_path)).fleet_path / "judgements" / f"{name}.json"


def read_judgement(home_path: Path, name: str) -> Judgement | None:
    """The newest judgement of model `name`, under way or of the last rollout; None if there was none.

    Raises:
        SpecError: the file is damaged.
    """
    path = judgement_path(home_path, name)
    try:
        return Judgement.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise SpecError(f"{path} is damaged ({fault(error)}): remove it; the next rollout writes it anew") from error


def write_judgement(home_path: Path, judgement: Judgement) -> None:
    """Replaces the model's file."""
    path = judgement_path(home_path, judgement.model)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, judgement.model_dump_json(indent=1) + "\n")


# --- all of it, as far as it can be read -----------------------------------------------------------------------------


class Damaged(Contract):
    """A file that cannot be read."""

    model: str
    file: str
    """Below the home's folder `fleet`."""
    reason: str
    """What is wrong with it, and what to do."""


class FleetView(Contract):
    """What the fleet's files say. One that is damaged takes nothing away but what it held."""

    models: dict[str, ModelView]
    judgements: dict[str, Judgement]
    """By model; each is of its newest rollout."""
    damaged: tuple[Damaged, ...]

    @property
    def unreadable(self) -> set[str]:
        """The models of whose state nothing is known."""
        return {found.model for found in self.damaged} - set(self.models)

    def damage_of(self, name: str) -> str:
        """What cannot be read of a model, and what to do; empty if all of it can."""
        return "; ".join(found.reason for found in self.damaged if found.model == name)


def view_fleet(home_path: Path) -> FleetView:
    """Everything that can be read, with the health of replicas as the gateway sees it now."""
    states: dict[str, ModelFleet] = {}
    judgements: dict[str, Judgement] = {}
    damaged: list[Damaged] = []

    def note(name: str, path: Path, error: SpecError) -> None:
        file = str(path.relative_to(Layout(Path(home_path)).fleet_path))
        damaged.append(Damaged(model=name, file=file, reason=str(error)))

    for path in model_paths(home_path):
        name = path.stem
        try:
            states[name] = read_model(path)
        except SpecError as error:
            note(name, path, error)
        try:
            judgement = read_judgement(home_path, name)
        except SpecError as error:
            note(name, judgement_path(home_path, name), error)
        else:
            if judgement and name in states and judgement.generation == states[name].generation:
                judgements[name] = judgement
    return FleetView(models=view_models(home_path, states), judgements=judgements, damaged=tuple(damaged))
