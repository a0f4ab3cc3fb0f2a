"""Waits for a job: polls its status, and copies its log into the task's."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from pipeline import settings
from pipeline.errors import TransientError
from slipway_airflow.backends import open_backend
from slipway_airflow.backends.base import Claim
from slipway_airflow.job_log import JobLog

POLL_S = 0.5
AWAY_POLL_S = 5.0
"""While what runs the job does not answer: it may be starting anew."""


class JobTrigger(BaseTrigger):
    """Fires once the job has ended, with how far its log was read and the last error seen there.

    A trigger that is moved or started again simply goes on polling; the job knows nothing of it. Only a user's action
    on the task (`on_kill`) lets go of the job.
    """

    def __init__(self, *, job_id: str, holder: str, token: str, offset: int, error: str = "") -> None:
        super().__init__()
        self.job_id = job_id
        self.claim = Claim(holder=holder, token=token)
        self.offset = offset
        self.error = error

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "job_id": self.job_id,
                "holder": self.claim.holder,
                "token": self.claim.token,
                "offset": self.offset,
                "error": self.error,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        backend = open_backend(settings.load())
        log = JobLog(backend, self.job_id, self.offset, self.error)
        while True:
            try:
                status = await asyncio.to_thread(backend.status, self.job_id)
                lines = await asyncio.to_thread(log.read)
            except TransientError as error:
                self.log.warning("cannot look at job %s now, which goes on: %s", self.job_id, error)
                await asyncio.sleep(AWAY_POLL_S)
                continue
            for line in lines:
                self.log.info("%s", line)
            if status.state != "running":
                yield TriggerEvent({"state": status.state, "offset": log.offset, "error": log.error})
                return
            await asyncio.sleep(POLL_S)

    async def on_kill(self) -> None:
        """A user marked or cleared the task. A newer try may have claimed the job by now; then it goes on."""
        ended = await asyncio.to_thread(open_backend(settings.load()).cancel, self.job_id, self.claim)
        self.log.info("job %s %s", self.job_id, "was cancelled" if ended else "goes on: somebody else wants it")
