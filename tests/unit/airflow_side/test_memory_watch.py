"""Whose memory ended when the kernel killed a process: the container's own, or the machine's."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from slipway_airflow.backends import process_runner

LIMIT = 8 << 30


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as a container runs it, beside its only neighbour."""
    monkeypatch.setitem(sys.modules, "process_runner", process_runner)
    from slipway_airflow.backends import container_runner

    return container_runner


def unified(root: Path, *, oom: int, oom_kill: int) -> None:
    (root / "memory.events").write_text(f"low 0\nhigh 0\nmax 9\noom {oom}\noom_kill {oom_kill}\n")
    (root / "memory.peak").write_text(f"{LIMIT}\n")


def divided(root: Path, *, peak_bytes: int, oom_kill: int) -> None:
    (root / "memory").mkdir(exist_ok=True)
    (root / "memory" / "memory.oom_control").write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {oom_kill}\n")
    (root / "memory" / "memory.max_usage_in_bytes").write_text(f"{peak_bytes}\n")


@pytest.mark.parametrize(("hits", "was_at"), [(1, True), (0, False)])
def test_a_kill_without_a_hit_of_the_limit_was_the_machines(
    runner: ModuleType, tmp_path: Path, hits: int, was_at: bool
) -> None:
    """Where the kernel counts both (cgroup v2)."""
    unified(tmp_path, oom=2, oom_kill=2)
    watch = runner.MemoryWatch(tmp_path)
    unified(tmp_path, oom=2 + hits, oom_kill=3)
    assert watch.kills() == 1
    assert watch.was_at(LIMIT) is was_at


@pytest.mark.parametrize(("peak_bytes", "was_at"), [(LIMIT, True), (LIMIT // 2, False)])
def test_where_hits_are_not_counted_the_peak_tells(
    runner: ModuleType, tmp_path: Path, peak_bytes: int, was_at: bool
) -> None:
    """cgroup v1 stops the count of what is used at the limit."""
    divided(tmp_path, peak_bytes=0, oom_kill=0)
    watch = runner.MemoryWatch(tmp_path)
    divided(tmp_path, peak_bytes=peak_bytes, oom_kill=1)
    assert watch.kills() == 1
    assert watch.was_at(LIMIT) is was_at
