"""Builds the images as `make images` does."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from pipeline.settings import ROOT


def build_images() -> str:
    """Builds all three with the Python outside the environment, whose pip is set up; gives what was said.

    Two runs of tests at the same time build one after the other, the second one from what the first made.
    """
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    command = [str(python), str(ROOT / "infra" / "setup" / "images.py")]
    folder = ROOT / "build" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    assert done.returncode == 0, f"the images could not be built:\n{done.stdout}"
    return done.stdout
