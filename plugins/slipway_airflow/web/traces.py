"""Follows an answer to its data set for the page: runs `python -m pipeline.trace`, which may read what we may not."""

import asyncio
import sys

from pydantic import ValidationError

from pipeline.contracts.trace import Trace
from pipeline.errors import EXIT_BAD_SPEC, SpecError, TransientError

TIMEOUT_S = 60.0
AT_ONCE = asyncio.Semaphore(2)
"""Each is a process that imports MLflow."""


async def find(request_id: str) -> Trace:
    """Everything behind the answer to one request.

    Raises:
        SpecError: the gateway's access logs hold no such request.
        TransientError: it took too long, or a part that is needed does not answer.
    """
    async with AT_ONCE:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pipeline.trace", request_id),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, said = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
        except TimeoutError as error:
            raise TransientError(
                f"no trace of {request_id} after {TIMEOUT_S:g} s: `slipway trace {request_id}` waits longer"
            ) from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    message = said.decode(errors="replace").strip().rpartition("\n")[2]
    if process.returncode == EXIT_BAD_SPEC:
        raise SpecError(message)
    try:
        return Trace.model_validate_json(out)
    except ValidationError as error:
        raise TransientError(
            f"the trace of {request_id} failed: {message or f'exit code {process.returncode}'}"
        ) from error
