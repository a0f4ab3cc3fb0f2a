"""Runs several steps one after the other in one process, as `python -m pipeline` would each.

    python tests/step_runs.py PLAN.json

PLAN.json is a list of {"step", "spec", "store"}. The last line printed is a JSON list with, for each, its exit code,
its artifact's URI and the error it ended with.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def run_steps(python_path: Path, plan: list[dict[str, Any]], environment: dict[str, str]) -> list[dict[str, Any]]:
    """Runs `plan` in the environment of `python_path`; see the module."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        path.write_text(json.dumps(plan))
        command = [str(python_path), str(Path(__file__).resolve()), str(path)]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    outcomes: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return outcomes


def _run(plan: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from pipeline import cli
    from pipeline.contracts.base import step_key
    from pipeline.contracts.specs import STEPS

    outcomes = []
    for number, entry in enumerate(plan):
        info = STEPS[entry["step"]]
        spec = info.spec.model_validate(entry["spec"])
        uri = f"{entry['store']}/{entry['step']}/{step_key(entry['step'], info.version, spec)}"
        path = Path(sys.argv[1]).with_name(f"spec-{number}.json")
        path.write_text(spec.model_dump_json())
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            code = cli.main([entry["step"], "--spec", str(path), "--out", uri])
        outcomes.append({"exit_code": code, "uri": uri, "error": errors.getvalue()[-3000:]})
    return outcomes


if __name__ == "__main__":
    results = _run(json.loads(Path(sys.argv[1]).read_text()))
    print("\n" + json.dumps(results), flush=True)
