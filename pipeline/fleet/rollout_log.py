"""What rollouts say, in `home/logs/rollouts.jsonl`, beside the log of the task that says it."""

from collections.abc import Callable
from pathlib import Path

from pipeline import json_lines
from pipeline.contracts.specs import RolloutSpec
from pipeline.stack.layout import Layout


def path_of(layout: Layout) -> Path:
    return layout.logs_path / "rollouts.jsonl"


def logged(layout: Layout, spec: RolloutSpec, say: Callable[[str], None]) -> Callable[[str], None]:
    """`say`, which also leaves each sentence as a line of JSON with the model, the rollout's number, its phase and the
    id of the run that asked for it."""

    def both(message: str) -> None:
        say(message)
        text = json_lines.line(
            "rollout",
            message,
            model=spec.name,
            version=spec.version,
            generation=spec.generation or None,
            phase=spec.phase,
            run_id=spec.request_id,
        )
        json_lines.append(path_of(layout), text)

    return both
