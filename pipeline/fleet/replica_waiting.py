"""Lets the processes of a vLLM replica sleep while they wait for each other, in the serve environment.

vLLM's engine and its worker talk through shared memory. For a second after each message the one that waits asks again
and again (`sched_yield`), which is right where it has a processor core to itself. On shared cores two idle replicas
then take nearly all time from what else runs there. So whoever waits goes at once to what vLLM does after that
second: it sleeps until the other's notification comes over a socket.

Notifications are lost: of two messages within about a millisecond the second has none (the writer's socket keeps one
and looks only so often whether it is gone), and a socket that is not connected yet gets none. vLLM's second hides both.
Here whoever waits looks by itself, each millisecond while messages come and go, else now and then.
"""

import time

from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

NEVER = float("-inf")
BUSY_S = 0.05
"""After a message the next one is near: a step of the engine takes milliseconds."""
LOOK_AGAIN_BUSY_MS, LOOK_AGAIN_MS = 1, 100

_wait = SpinCondition.wait


def sleep_at_once(self: SpinCondition, timeout_ms: int | None = None) -> None:
    """`SpinCondition.wait` of one whose last message is long ago. Callers look at their own deadline and call again."""
    last_read = self.last_read
    look_again_ms = LOOK_AGAIN_BUSY_MS if time.monotonic() - last_read < BUSY_S else LOOK_AGAIN_MS
    self.last_read = NEVER
    _wait(self, look_again_ms if timeout_ms is None else min(timeout_ms, look_again_ms))
    self.last_read = last_read


SpinCondition.wait = sleep_at_once
