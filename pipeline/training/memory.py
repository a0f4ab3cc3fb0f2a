"""The memory that a training took on one rank, measured."""

import threading
from pathlib import Path
from typing import Any, Self

STATM = Path("/proc/self/statm")
SAMPLE_S = 0.01


class PeakMemory:
    """Looks at this rank's memory from `start`, just before a model is loaded, until `stop`.

    On an accelerator: the most that torch's allocator had in use at once.

    Elsewhere: how far the process's anonymous resident memory rose above what it was at the start, at most; looked at
    every 10 ms, in which a core touches about 20 MB. Anonymous memory is what the process has written to: parameters,
    gradients, optimizer state, activations, buffers, and free memory that the allocator keeps. It leaves out what the
    libraries took before, and pages of files, weights that are being read among them. The kernel's own peak
    (VmHWM) counts both, and so says more than the training needs.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._before = 0
        self._ended = threading.Event()
        self._sampler: threading.Thread | None = None

    def start(self) -> Self:
        torch = _accelerated_torch()
        if torch is not None:
            torch.cuda.reset_peak_memory_stats()
            return self
        self._before = anonymous_bytes()
        self._sampler = threading.Thread(target=self._sample, name="memory", daemon=True)
        self._sampler.start()
        return self

    def stop(self) -> None:
        if self._sampler is None:
            self.peak_bytes = int(_accelerated_torch().cuda.max_memory_allocated())
            return
        self._ended.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes() - self._before)


def anonymous_bytes() -> int:
    """Resident pages of this process that belong to no file: the same as RssAnon in /proc/self/status."""
    import resource

    fields = STATM.read_bytes().split()
    return (int(fields[1]) - int(fields[2])) * resource.getpagesize()


def _accelerated_torch() -> Any:
    import torch

    return torch if torch.cuda.is_available() else None
