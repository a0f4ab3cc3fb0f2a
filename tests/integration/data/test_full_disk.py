"""A step on a disk that is really full: a small file system in memory, in a mount namespace of the test's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.contracts.base import step_key
from pipeline.contracts.specs import STEPS
from pipeline.settings import ROOT
from tests.chat_files import good_rows, validate_spec, write_jsonl

pytestmark = [pytest.mark.integration, pytest.mark.needs("mounts")]

SCRIPT = """
set -u
mount -t tmpfs -o size=100k none "$DISK"
"$@"; echo "exit code $?"
mount -o remount,size=64m "$DISK"
"$@"; echo "exit code $?"
find "$DISK/store" -type f
"""


def test_a_full_disk_is_said_and_the_step_runs_once_there_is_room(tmp_path: Path) -> None:
    """With the code that is retried; nothing half-written stays in the store."""
    disk = tmp_path / "disk"
    disk.mkdir()
    paths = [write_jsonl(tmp_path / name, good_rows(60, name)) for name in ("train.jsonl", "eval.jsonl")]
    spec = validate_spec(paths[0], paths[1])
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    out = f"{(disk / 'store').as_uri()}/validate/{step_key('validate', STEPS['validate'].version, spec)}"
    step = [sys.executable, "-m", "pipeline", "validate", "--spec", str(tmp_path / "spec.json"), "--out", out]
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "bash", "-c", SCRIPT, "bash", *step],
        cwd=ROOT,
        env={**os.environ, "DISK": str(disk), "SLIPWAY_HOME": str(disk / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert [line for line in said.splitlines() if line.startswith("exit code")] == ["exit code 75", "exit code 0"], said
    assert "error 75 TransientError" in said
    assert "No space left on device; free some space" in said
    kept = [Path(line).name for line in done.stdout.splitlines() if line.startswith(str(disk))]
    assert kept.count("manifest.json") == 1
    assert not [line for line in done.stdout.splitlines() if "/.partial/" in line]
