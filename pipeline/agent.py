"""Talks to the agent: the one service that may start containers, for everybody else who wants some.

The agent (`slipway_airflow.agent`) listens on a Unix socket and knows a handful of requests, in JSON. An error of ours
that it raises arrives here as the same error.
"""

from pathlib import Path
from typing import Any

import httpx

from pipeline import errors
from pipeline.errors import SlipwayError, SpecError, TransientError

TIMEOUT_S = 150.0
"""Ending a replica takes as long as it drains."""


class AgentClient:
    """May be used from several threads and after a fork: it keeps no connection."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path

    def call(self, method: str, path: str, body: Any = None, **parameters: str | int | float) -> Any:
        """The answer to one request, as plain JSON.

        Raises:
            SlipwayError: the one that the agent raised.
            TransientError: the agent does not answer.
        """
        if not self.socket_path.is_socket():
            raise self._away("there is no socket")
        transport = httpx.HTTPTransport(uds=str(self.socket_path), verify=False)
        with httpx.Client(transport=transport, base_url="http://agent", timeout=TIMEOUT_S, trust_env=False) as client:
            try:
                answer = client.request(method, path, json=body, params=parameters)
            except httpx.HTTPError as error:
                raise self._away(f"{type(error).__name__}: {error}") from error
        if answer.is_success:
            return answer.json()
        raise _error(answer)

    def _away(self, why: str) -> TransientError:
        return TransientError(
            f"the agent at {self.socket_path} does not answer ({why}); start the service `jobs`, or correct"
            " SLIPWAY_AGENT"
        )


def describe(error: SlipwayError) -> dict[str, str]:
    """An error as the agent sends it."""
    return {"type": type(error).__name__, "message": str(error)}


def _error(answer: httpx.Response) -> SlipwayError:
    try:
        told = answer.json()
        kind = getattr(errors, told["type"])
        return kind(told["message"])  # type: ignore[no-any-return]
    except (ValueError, KeyError, TypeError, AttributeError):
        refused = SpecError if answer.status_code < 500 else TransientError
        return refused(f"the agent answered HTTP {answer.status_code}: {answer.text[:500]}")
