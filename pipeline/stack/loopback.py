"""Asks this machine's own servers, past any proxy. One client, since making one that knows all authorities costs more
than the questions; no connection is kept, since after a restart of the gateway it would lead to the one before.
"""

from functools import cache
from typing import Any

import httpx

TIMEOUT_S = 5.0


@cache
def client() -> httpx.Client:
    """For http on 127.0.0.1 only; it can be used from several threads."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(timeout=TIMEOUT_S, trust_env=False, verify=False, limits=limits)


def answers(url: str) -> bool:
    """Whether something there answers 200."""
    try:
        return client().get(url).status_code == 200
    except httpx.TransportError:
        return False


def read_json(url: str, params: dict[str, str] | None = None, login: tuple[str, str] | None = None) -> Any:
    """The JSON of a 200; None for any other answer, or none at all. `login` is a user and a password."""
    try:
        answer = client().get(url, params=params, auth=login)
    except httpx.TransportError:
        return None
    return answer.json() if answer.status_code == 200 else None
