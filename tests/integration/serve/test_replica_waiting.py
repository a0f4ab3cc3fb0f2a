"""How the processes of an engine wait for each other."""

import threading
from types import SimpleNamespace
from typing import Any, cast

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


def test_who_waits_looks_by_itself_often_while_messages_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two messages that follow each other closely has no notification."""
    waited: list[int] = []
    monkeypatch.setattr(replica_waiting, "_wait", lambda self, timeout_ms: waited.append(timeout_ms))
    monkeypatch.setattr(replica_waiting.time, "monotonic", lambda: 100.0)
    for last_read in (100.0, 99.99, 99.9, 0.0):
        reader = SimpleNamespace(last_read=last_read)
        replica_waiting.sleep_at_once(cast(Any, reader), timeout_ms=60_000)
        assert reader.last_read == last_read
    assert waited == [1, 1, 100, 100]
