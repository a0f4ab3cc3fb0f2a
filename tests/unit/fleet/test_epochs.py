"""What the gateway's program should run, and what is said when it cannot."""

from pathlib import Path

import pytest

from pipeline.errors import TransientError
from pipeline.fleet import epochs
from pipeline.fleet.epochs import STANDING_FILE, Epoch, Process, Standing


def test_who_is_told_that_an_epoch_did_not_come_up_is_told_how_to_try_again(tmp_path: Path) -> None:
    """`up` alone never does: what is wanted stays the same."""
    wanted = epochs.write_wanted(tmp_path, ("/bin/sh",), b"bootstrap")
    process = Process(pid=1, created=0.0)
    current = Epoch(number=0, base_id=1, process=process, wanted="another", compatible="11.1", began_at=0.0)
    standing = Standing(current=current, refused=wanted.digest, reason="see logs/gateway.log")
    (tmp_path / STANDING_FILE).write_text(standing.model_dump_json())
    with pytest.raises(TransientError, match=r"logs/gateway\.log.*`slipway gateway restart` tries again"):
        epochs.runs_as_wanted(tmp_path)
    with pytest.raises(TransientError, match="`slipway gateway restart` tries again"):
        epochs.await_epoch(tmp_path, wanted, 1.0)
