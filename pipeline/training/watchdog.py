"""Notices that a training has stopped without having ended: a cut link, a rank that hangs, a disk that answers no more.

A rank that waits for others in a collective call learns nothing of all that for minutes. This thread says where it
waits, and ends the process; torchrun then starts all ranks again, from the last checkpoint.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from pipeline.settings import ROOT, rank_error_path

STALLED = "the training stands still"
"""How its message begins: other ranks are the cause as often as the one that says so."""
LOOKS = 20
"""So often in the time that a step may take."""


class Watchdog:
    """A context manager around the steps of one rank, or around what must come to an end before them."""

    def __init__(self, timeout_s: float, rank: int, doing: str = "at the first step") -> None:
        """Args: doing: what the rank is watched at, until it says that it is at a step."""
        self._timeout_s = timeout_s
        self._rank = rank
        self._doing = doing
        self._moved = time.monotonic()
        self._asleep = False
        self._ended = threading.Event()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._moved = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def at(self, step: int) -> None:
        """The training has come to `step`."""
        self._doing, self._moved = f"at step {step}", time.monotonic()

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """For what has time limits of its own."""
        self._asleep = True
        try:
            yield
        finally:
            self._moved, self._asleep = time.monotonic(), False

    def _watch(self) -> None:
        while not self._ended.wait(self._timeout_s / LOOKS):
            if not self._asleep and time.monotonic() - self._moved > self._timeout_s:
                self._end_process()

    def _end_process(self) -> None:
        message = (
            f"{STALLED}: rank {self._rank} has been {self._doing} for more than {self._timeout_s:g} s"
            f" (finetune.stall_timeout_s), waiting in {place(sys._current_frames()[self._watched])}; likely causes:"
            " a rank that hangs or cannot be reached (it says nothing, or that it waits elsewhere), or steps that take"
            " longer than this limit"
        )
        print(message, file=sys.stderr, flush=True)
        path = rank_error_path()
        if path is not None:
            content = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
            path.write_text(json.dumps({"message": content}))
        os._exit(1)


def place(frame: FrameType | None) -> str:
    """Where a thread is: the innermost call, and the line of ours that led there."""
    calls = traceback.extract_stack(frame)
    ours = [call for call in calls if call.filename.startswith(str(ROOT / "pipeline"))]
    where = f"{calls[-1].name} ({os.path.basename(calls[-1].filename)}:{calls[-1].lineno})"
    if not ours or ours[-1] == calls[-1]:
        return where
    return f"{where}, called by {ours[-1].name} ({os.path.basename(ours[-1].filename)}:{ours[-1].lineno})"
