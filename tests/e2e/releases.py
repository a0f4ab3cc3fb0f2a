"""Small releases of real data, and what came of them."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from running_stack import RunningStack

from pipeline.fleet.views import read_fleet

MODEL = "banking77"
LIMIT_S = 900.0

Rows = dict[str, Path]
"""`train` and `test`."""


def flags(rows: Rows, **overrides: object) -> list[str]:
    """The overrides of a release with little training. A model that knows nothing is good enough for it."""
    settings = {
        "dataset.uri": rows["train"],
        "dataset.eval_uri": rows["test"],
        "validation.min_rows": 1000,
        "validation.max_overlap_fraction": 0.02,
        "validation.min_distinct_answers": 70,
        "finetune.epochs": 1,
        "finetune.checkpoint_every_steps": 10,
        "gates.min_score": 0,
        "gates.champion_margin": 1,
        # Nor does it answer as well as the version before, which a rollout would see.
        "rollout.max_score_drop": 1,
        "rollout.steps": "[50, 100]",
        "rollout.step_s": 1,
        "rollout.keep_warm_s": 600,
        "compress.ladder": "[w8a8, none]",
        **overrides,
    }
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def release(stack: RunningStack, rows: Rows, summary: Path, **overrides: object) -> dict[str, Any]:
    """A whole release, to its end; its summary. What the command printed stays beside it."""
    arguments = ("release", MODEL, *flags(rows, **overrides), "--json", str(summary))
    done = stack.slipway(*arguments, timeout_s=LIMIT_S)
    summary.with_suffix(".txt").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(summary.read_text()))


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.5)


def status(stack: RunningStack) -> dict[str, Any]:
    return dict(json.loads(stack.slipway("status", "--json").stdout))


def serving(stack: RunningStack) -> str | None:
    model = read_fleet(stack.home_path).get(MODEL)
    return model.serving.version if model and model.serving else None
