"""Seconds from setting the alias in MLflow to the first answer of the canary, on a whole stack with real replicas.

    .venvs/control/bin/python tests/bench/alias_to_answer.py [MOVES]

Needs nothing running: it starts a stack in a temporary folder, releases two small versions, moves the alias to and fro,
and ends the stack. Beside the whole, what of it the rollout's DAG run takes to begin (Airflow's poll of the alias, and
its scheduling); the rest is mostly the replicas' start.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).parents[1] / "e2e"), str(Path(__file__).parents[2])]

import httpx  # noqa: E402
from clients import constant_clients  # noqa: E402
from releases import wait_until  # noqa: E402
from running_stack import RunningStack  # noqa: E402

from pipeline.fleet.state import read_models  # noqa: E402

MODEL = "support-intents"
SETTINGS = {
    "dataset.generate.train_rows": 1000,
    "validation.min_rows": 100,
    "finetune.epochs": 1,
    "gates.min_score": 0,
    "gates.champion_margin": 1,
    "compress.ladder": "[none]",
    "rollout.step_s": 1,
    "rollout.keep_warm_s": 0,
    "rollout.max_latency_ratio": 50,
    "rollout.max_score_drop": 1,
}


def main() -> None:
    moves = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory(prefix="slipway-bench-", ignore_cleanup_errors=True) as folder:
        stack = RunningStack(Path(folder) / "home")
        try:
            stack.up()
            versions = [release(stack, Path(folder) / f"{seed}.json", seed=seed) for seed in (1, 2)]
            # The second serves: the first move is to the first.
            found = [measure(stack, versions[index % 2]) for index in range(moves)]
        finally:
            stack.down()
    whole, begun = median(whole for whole, _ in found), median(begun for _, begun in found)
    line = {
        "name": "alias set to first canary answer",
        "value": round(whole, 2),
        "unit": "s",
        "baseline": "of it, until the rollout begins",
        "baseline_value": round(begun, 2),
        "ratio": round(whole / begun, 2),
    }
    print(json.dumps(line), flush=True)


def release(stack: RunningStack, summary: Path, *, seed: int) -> str:
    """The version that came of it, and serves."""
    flags = [
        word for name, value in {**SETTINGS, "finetune.seed": seed}.items() for word in ("--set", f"{name}={value}")
    ]
    done = stack.slipway("release", "demo", *flags, "--json", str(summary))
    assert done.returncode == 0, done.stdout + done.stderr
    return str(json.loads(summary.read_text())["version"])


def measure(stack: RunningStack, version: str) -> tuple[float, float]:
    """Seconds to the first answer, and to the rollout's beginning. Returns once the rollout is over."""
    with constant_clients(stack.gateway_url, stack.credentials.api_key, MODEL, pause_s=0.05) as load:
        body = {"name": MODEL, "alias": "champion", "version": version}
        moved = time.time()
        url = f"{stack.mlflow_url}/api/2.0/mlflow/registered-models/alias"
        httpx.post(url, json=body, timeout=60).raise_for_status()
        wait_until(lambda: load.answers[version] > 0, "the first answer of the canary", 300)
        answered = time.time()
        # Until then the version before has replicas, and going back to it would start none.
        wait_until(lambda: is_over(stack), "the end of the rollout", 300)
    begun = read_models(stack.home_path)[MODEL].history[-1].started_at
    return answered - moved, begun - moved


def is_over(stack: RunningStack) -> bool:
    newest = read_models(stack.home_path)[MODEL].history[-1]
    return newest.outcome == "promoted" and "retire" in newest.phases


if __name__ == "__main__":
    main()
