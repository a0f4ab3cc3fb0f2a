"""What a rollout in its phase `shift` sees right now: `home/fleet/judgements/<model>.json`, rewritten every second.

Reading needs no lock: the file is only ever replaced as a whole. The last judgement of each rollout stays in the
fleet's state (`Rollout.comparisons`).

    from pipeline.fleet.analysis.live import read_judgement
    read_judgement(home_path, "banking77").comparisons
"""

from pathlib import Path

from pydantic import ValidationError

from pipeline.contracts.base import Contract
from pipeline.errors import SpecError
from pipeline.fleet.analysis.comparison import Comparison
from pipeline.fleet.state import write_atomically
from pipeline.stack.layout import Layout


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
        raise SpecError(f"{path} is damaged ({error}): remove it; the next rollout writes it anew") from error


def write_judgement(home_path: Path, judgement: Judgement) -> None:
    """Replaces the model's file."""
    path = judgement_path(home_path, judgement.model)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, judgement.model_dump_json(indent=1) + "\n")
