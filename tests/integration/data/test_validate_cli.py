"""The validate step as a backend runs it: a process with a spec, an exit code and lines of output."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.contracts.base import step_key
from pipeline.contracts.specs import STEPS, ValidateSpec
from pipeline.settings import ROOT
from tests.chat_files import chat, good_rows, validate_spec, write_jsonl
from tests.integration.mlflow_server import MlflowServer

pytestmark = pytest.mark.integration

MILLION = 1_000_000
MAX_PEAK_MIB = 1300
"""Of the whole process for a file of 160 MB. The libraries take about 350; a second copy of the rows as Python
objects would take 700 more."""


def run_cli(
    spec: ValidateSpec, home_path: Path, tracking_uri: str | None = None
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The finished process, and the folder of its artifact."""
    home_path.mkdir(parents=True, exist_ok=True)
    spec_path = home_path / "spec.json"
    spec_path.write_text(spec.model_dump_json())
    folder = home_path / "store" / "validate" / step_key("validate", STEPS["validate"].version, spec)
    command = [sys.executable, "-m", "pipeline", "validate", "--spec", str(spec_path), "--out", folder.as_uri()]
    environment = {**os.environ, "SLIPWAY_HOME": str(home_path)}
    if tracking_uri:
        environment |= {"MLFLOW_TRACKING_URI": tracking_uri, "SLIPWAY_RELEASE": "validated"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    ), folder


def test_bad_data_ends_with_65_the_rule_on_stderr_and_a_report_in_mlflow(
    tmp_path: Path, mlflow_server: MlflowServer
) -> None:
    """And leaves no manifest, so nothing can be trained on it."""
    from mlflow import MlflowClient

    train_path = write_jsonl(tmp_path / "train.jsonl", [*good_rows(30), b"{broken\n"])
    eval_path = write_jsonl(tmp_path / "eval.jsonl", good_rows(10, "eval"))
    spec = validate_spec(train_path, eval_path)
    done, folder = run_cli(spec, tmp_path / "home", mlflow_server.uri)
    assert done.returncode == 65, done.stderr
    assert "error 65 DataError: the data breaks 1 of 20 rules:" in done.stderr
    assert "train structure (train.jsonl): 1 of 31 rows" in done.stderr
    report = re.search(r"the whole report: file://(\S+)", done.stderr)
    assert report is not None
    assert Path(report[1]).is_file()
    assert not (folder / "manifest.json").exists()
    assert re.search(r"^progress \d+/\d+ 100%", done.stdout, re.MULTILINE)

    client = MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name("validated")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id], f"tags.`slipway.key` = '{folder.name}'")
    assert tracked.info.status == "FAILED"
    assert tracked.data.tags["slipway.validation"] == "refused"
    files = [file.path for file in client.list_artifacts(tracked.info.run_id, "validation")]
    assert files == ["validation/report.html", "validation/report.json"]


@pytest.mark.needs("data")
def test_banking77_keeps_the_rules_of_its_recipe(tmp_path: Path, real_data_path: Path) -> None:
    """Seven of its published test questions are training questions too, which the recipe allows for."""
    rules = {"max_overlap_fraction": 0.005, "max_duplicate_fraction": 0.001, "min_distinct_answers": 77}
    spec = validate_spec(real_data_path / "banking77-train.jsonl", real_data_path / "banking77-test.jsonl", **rules)
    done, folder = run_cli(spec, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["result"]["train_rows"], manifest["result"]["eval_rows"]) == (10_003, 3_080)
    assert len(manifest["result"]["labels"]) == 77


def test_a_million_rows_are_validated_in_bounded_memory(tmp_path: Path) -> None:
    """In one pass over the file."""
    path = tmp_path / "train.jsonl"
    form = json.dumps(chat("%d %.17f " * 3, "answer %d"))
    dice = random.Random(0)
    with path.open("w") as file:
        for number in range(MILLION):
            drawn = dice.random()
            file.write(form % (number, drawn, number, drawn, number, drawn, number % 50) + "\n")
    assert path.stat().st_size > 150e6
    spec = validate_spec(path, write_jsonl(tmp_path / "eval.jsonl", good_rows(100, "eval")), max_tokens=200)
    done, folder = run_cli(spec, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["result"]["train_rows"] == MILLION
    assert manifest["figures"]["peak_memory_mib"] < MAX_PEAK_MIB
