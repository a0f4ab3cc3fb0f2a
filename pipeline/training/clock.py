"""Where an optimizer step's time goes, phase by phase."""

import time
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PHASES = ("data", "forward", "backward", "communication", "optimizer", "pipeline")
"""`communication` includes waiting for the slowest rank. DeepSpeed's own step is all `optimizer`, and what it exchanges
during the backward pass is `backward`; with stages, whose passes interleave, all is `pipeline`."""


class Clock:
    """A stop-watch that gives each stretch of time to a phase.

    On a GPU the stretches are those of the device: an event is put into its queue at each lap, and nothing waits for
    it before `take`.
    """

    def __init__(self, device: "torch.device") -> None:
        self._on_device = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._laps: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._last: torch.cuda.Event | float = 0.0

    def start(self) -> None:
        self._last = self._now()

    def lap(self, phase: str) -> None:
        """The time since the last lap, or the start, was spent on `phase`."""
        now, last = self._now(), self._last
        if isinstance(now, float):
            self._seconds[phase] += now - last
        else:
            self._laps.append((phase, last, now))
        self._last = now

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call."""
        if self._laps:
            self._laps[-1][2].synchronize()
            for phase, begun, ended in self._laps:
                self._seconds[phase] += begun.elapsed_time(ended) / 1e3
            self._laps.clear()
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken

    def _now(self) -> "torch.cuda.Event | float":
        if not self._on_device:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
