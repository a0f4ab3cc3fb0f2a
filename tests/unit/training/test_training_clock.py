"""Where a step's time goes: phases that add up, and the picture of them."""

import json
import time
from pathlib import Path

import pytest
import torch

from pipeline.training import step_time
from pipeline.training.clock import Clock


def test_the_phases_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stretch counts once, stretches of one phase together, and `take` begins anew."""
    now = iter([10.0, 11.0, 13.0, 16.0, 20.0, 21.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = Clock(torch.device("cpu"))
    clock.start()
    for phase in ("data", "forward", "data"):
        clock.lap(phase)
    assert clock.take() == {"data": 4.0, "forward": 2.0}
    clock.start()
    clock.lap("optimizer")
    assert clock.take() == {"optimizer": 1.0}


def test_a_step_taken_again_after_a_restart_is_shown_once(tmp_path: Path) -> None:
    """The events of both attempts are in one file; those without times are others' figures."""
    events = [
        {"step": 10, "time/data_s": 0.001, "time/forward_s": 0.004},
        {"step": 20, "time/data_s": 0.001, "time/forward_s": 0.009},
        {"step": 20, "time/data_s": 0.002, "time/forward_s": 0.005},
        {"step": 20, "predicted_memory_mb": 7.0},
    ]
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    steps, times = step_time.read(path)
    assert steps == [10, 20]
    assert {phase: pytest.approx(values) for phase, values in times.items()} == {"data": [1, 2], "forward": [4, 5]}
    step_time.plot(path, tmp_path / "step_time.png")
    assert (tmp_path / "step_time.png").read_bytes().startswith(b"\x89PNG")
