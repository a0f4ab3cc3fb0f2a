"""The lock between the processes of one machine."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import TransientError
from pipeline.registry.locks import file_lock
from pipeline.settings import ROOT

HOLD = """
import sys, time
from pathlib import Path
from pipeline.registry.locks import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_is_held_against_another_process_and_freed_when_that_dies(tmp_path: Path) -> None:
    """Even by kill -9."""
    path = tmp_path / "locks" / "model.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TransientError, match=r"model\.lock for 0.1 s"), file_lock(path, wait_s=0.1):
            pass
        holder.kill()
        holder.wait()
        with file_lock(path, wait_s=10):
            pass
