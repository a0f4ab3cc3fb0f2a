"""What the gateway's keeper makes of an epoch that it was starting when it was killed."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.fleet import envoy_keeper, epochs
from pipeline.fleet.envoy_keeper import Keeper
from pipeline.fleet.epochs import STANDING_FILE, Epoch, Process, Standing

Start = Callable[[int], Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts what looks like an Envoy of this folder, as epoch so and so."""
    begun = []

    def begin(number: int) -> Process:
        options = ("--config-path", str(tmp_path / "bootstrap.json"), "--restart-epoch", str(number))
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", *options])
        begun.append(process)
        return Process(pid=process.pid, created=psutil.Process(process.pid).create_time())

    yield begin
    for process in begun:
        process.kill()
        process.wait()


def left_behind(folder: Path, current: Process) -> Keeper:
    """By one that was killed as it started epoch 5."""
    wanted = epochs.write_wanted(folder, (sys.executable,), b"bootstrap")
    epoch = Epoch(number=4, base_id=7, process=current, wanted="before", compatible="11.1", began_at=time.time())
    standing = Standing(current=epoch, intended=wanted.digest)
    (folder / STANDING_FILE).write_text(standing.model_dump_json())
    return Keeper(folder)


def is_live(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """What answers at Envoy's own interface."""
    said = {"state": "LIVE", "command_line_options": {"restart_epoch": number}}
    monkeypatch.setattr(envoy_keeper, "server_info", lambda folder: said)


def test_an_epoch_whose_start_was_cut_short_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    """It may have taken over by then: neither it nor the one before is ended, which would refuse connections."""
    before, after = start(4), start(5)
    keeper = left_behind(tmp_path, before)
    keeper._take_up()
    is_live(monkeypatch, 5)
    assert keeper._look()
    standing = epochs.read_standing(tmp_path)
    assert standing.current
    assert (standing.current.number, standing.current.process, standing.current.base_id) == (5, after, 7)
    assert standing.draining == before
    assert epochs.alive(before)
    assert epochs.alive(after)


def test_an_epoch_that_was_not_started_after_all_is_started_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    """The one before goes on meanwhile."""
    before = start(4)
    keeper = left_behind(tmp_path, before)
    is_live(monkeypatch, 4)
    keeper._take_up()
    standing = epochs.read_standing(tmp_path)
    assert standing.current
    assert (standing.current.process, standing.coming, standing.intended) == (before, None, "")


def test_an_envoy_that_nobody_was_starting_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    """Two that do not know of each other would write the same log."""
    before, stranger = start(4), start(9)
    keeper = left_behind(tmp_path, before)
    is_live(monkeypatch, 4)
    keeper._take_up()
    assert not epochs.alive(stranger)
    assert epochs.alive(before)
