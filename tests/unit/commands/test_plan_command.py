"""`slipway plan`, and what `slipway validate` says of fine-tuning."""

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LARGE = [
    f"--set=base_model.init.{name}={value}"
    for name, value in {
        "hidden_size": 4096, "intermediate_size": 8192, "num_layers": 8, "num_heads": 32, "num_kv_heads": 32
    }.items()
]  # fmt: skip


def slipway(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command, with a home of its own."""
    environment = {**os.environ, "SLIPWAY_HOME": str(home)}
    return subprocess.run(
        [str(ROOT / "slipway"), *arguments], cwd=home, env=environment, capture_output=True, text=True, check=False
    )


def test_a_plan_shows_memory_alternatives_and_where_figures_are_from(tmp_path: Path) -> None:
    """In this order, and says what a release would use."""
    done = slipway(tmp_path, "plan", "demo", "--set", "finetune.parallelism=auto")

    assert done.returncode == 0, done.stderr
    parts = [
        "(chosen): at most",
        "GB of a rank, by moment",
        "optimizer step",
        "Ways to spread it",
        "the simplest of the fastest that fit",
    ]
    places = [done.stdout.index(part) for part in [*parts, "Figures", "an estimate: "]]
    assert places == sorted(places)


def test_a_plan_for_other_machines_is_json_for_programs(tmp_path: Path) -> None:
    """A 1.4 B model on accelerators."""
    done = slipway(
        tmp_path, "plan", "demo", *LARGE, "--set=finetune.parallelism=auto", "--set=resources.finetune.memory_gb=512",
        "--json", "--cluster", "nodes=2,gpus=8,accelerator=a100-80gb,bandwidth_gbps=400",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["ranks"], told["fits"]) == (16, True)
    assert told["expected"]["rank_bytes"] < 80e9
    assert told["hardware"]["between nodes"] == {"value": 400.0, "unit": "Gbit/s", "source": "given"}


def test_a_plan_that_does_not_fit_says_what_would(tmp_path: Path) -> None:
    """With the exit code of a recipe that cannot be carried out."""
    done = slipway(tmp_path, "plan", "demo", *LARGE, "--set=finetune.parallelism=auto", "--set=finetune.nodes=1")

    assert done.returncode == 64
    assert "% of the memory" in done.stdout
    assert "enough would be resources.finetune.memory_gb: " in done.stdout


def test_validate_refuses_what_does_not_fit_and_forecasts_what_does(tmp_path: Path) -> None:
    """The words of the release's first step, before there is a release."""
    refused = slipway(tmp_path, "validate", "demo", *LARGE)
    accepted = slipway(tmp_path, "validate", "demo")

    assert refused.returncode == 64
    assert "finetune does not fit: a node needs" in refused.stderr
    assert "resources.finetune.memory_gb" in refused.stderr
    assert accepted.returncode == 0
    assert "finetune, 2 ranks on 2 nodes, zero 1: at most" in accepted.stdout
