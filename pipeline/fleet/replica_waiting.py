"""Lets the processes of a vLLM replica sleep while they wait for each other, in the serve environment.

vLLM's engine and its worker talk through shared memory. For a second after each message the one that waits asks again
and again (`sched_yield`), which is right where it has a processor core to itself. On shared cores two idle replicas
then take nearly all time from what else runs there. So whoever waits goes at once to what vLLM does after that
second: it sleeps until the other's notification comes over a socket. It also looks by itself now and then, because a
notification is lost on a socket that is not connected yet; that second hides this in vLLM.
"""

from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

NEVER = float("-inf")
LOOK_AGAIN_MS = 100

_wait = SpinCondition.wait


def sleep_at_once(self: SpinCondition, timeout_ms: int | None = None) -> None:
    """`SpinCondition.wait` of one whose last message is long ago. Callers look at their own deadline and call again."""
    self.last_read = NEVER
    _wait(self, LOOK_AGAIN_MS if timeout_ms is None else min(timeout_ms, LOOK_AGAIN_MS))


SpinCondition.wait = sleep_at_once
