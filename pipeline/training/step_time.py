"""A picture of where the steps' time went, from the events of a training; for MLflow.

It differs from run to run, so it is no part of the artifact.
"""

import json
from pathlib import Path

from pipeline.training.clock import PHASES

NAME = "step_time.png"
COLORS = ("#b9b9b9", "#9db8d9", "#1f4e8c", "#d9822b", "#5a9367", "#7d5ba6")


def read(events_path: Path) -> tuple[list[int], dict[str, list[float]]]:
    """The steps that times were told of, and milliseconds a step by phase."""
    events = [json.loads(line) for line in events_path.read_bytes().splitlines()]
    by_step = {event["step"]: event for event in events if any(name.startswith("time/") for name in event)}
    timed = [by_step[step] for step in sorted(by_step)]  # a step that was taken again after a restart: the last time
    phases = [phase for phase in PHASES if any(f"time/{phase}_s" in event for event in timed)]
    times = {phase: [1e3 * event.get(f"time/{phase}_s", 0.0) for event in timed] for phase in phases}
    return [int(event["step"]) for event in timed], times


def plot(events_path: Path, path: Path) -> None:
    """Draws `path`, a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps, times = read(events_path)
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=100)
    labels = [f"{phase} {sum(values) / len(values):.3g} ms" for phase, values in times.items()]
    axes.stackplot(steps, *times.values(), labels=labels, colors=COLORS)
    axes.set(xlabel="optimizer step", ylabel="milliseconds a step, first rank", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
