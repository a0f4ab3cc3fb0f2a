"""How the processes of an engine wait for each other."""

import threading
import time

import pytest
import zmq
from vllm.distributed.device_communicators import shm_broadcast
from vllm.utils.network_utils import get_open_zmq_ipc_path

from pipeline.fleet import replica_waiting

pytestmark = pytest.mark.integration


def test_a_process_that_waits_sleeps_at_once_and_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also right after a message, when vLLM would ask again and again for a second."""
    monkeypatch.setattr(shm_broadcast, "sched_yield", lambda: pytest.fail("it does not sleep"))
    context, address = zmq.Context(), get_open_zmq_ipc_path()
    writer = shm_broadcast.SpinCondition(is_reader=False, context=context, notify_address=address)
    reader = shm_broadcast.SpinCondition(is_reader=True, context=context, notify_address=address)
    ended = threading.Event()

    def notify() -> None:
        while not ended.wait(0.005):
            writer.notify()

    notifying = threading.Thread(target=notify)
    notifying.start()
    try:
        for _ in range(20):
            reader.record_read()
            reader.wait(timeout_ms=60_000)
    finally:
        ended.set()
        notifying.join()
        context.destroy(linger=0)


def test_a_lost_notification_costs_a_millisecond_while_messages_come_and_go() -> None:
    """The second of two messages that follow each other closely has none."""
    context, address = zmq.Context(), get_open_zmq_ipc_path()
    reader = shm_broadcast.SpinCondition(is_reader=True, context=context, notify_address=address)
    try:
        reader.record_read()
        began = time.monotonic()
        for _ in range(10):
            reader.wait(timeout_ms=60_000)
        assert time.monotonic() - began < replica_waiting.LOOK_AGAIN_MS / 1000
        assert reader.last_read <= began
    finally:
        context.destroy(linger=0)
