"""What the gateway is told of each client: the digests of its keys, its limits, whether its day's tokens are used up.

The stack's own two clients have their keys in files of their own; the others come from the ring of keys.
"""

from pipeline.contracts.base import Contract
from pipeline.fleet.doors.keys import PROBE_CLIENT, Key, KeyRing, digest_of


class Client(Contract):
    """One client of the gateway."""

    name: str
    digests: tuple[str, ...]
    """Of the keys that open the door for it now, SHA-256 in hexadecimal."""
    rate: float | None = None
    """Requests a second."""
    burst: int | None = None
    may_choose: bool = False
    """It may name a version with `x-slipway-canary`."""
    exhausted: bool = False
    """It has used up today's tokens."""


def clients_of(ring: KeyRing, own: dict[str, str], exhausted: frozenset[str], now: float) -> tuple[Client, ...]:
    """Everybody who may come in, in the order of their names.

    Args:
        own: the stack's own clients and their keys.
        exhausted: names of clients whose budget is used up.
    """
    stacks = [
        Client(name=name, digests=(digest_of(key),), may_choose=name == PROBE_CLIENT) for name, key in own.items()
    ]
    others = [_client(key, now, key.name in exhausted) for key in ring.keys if key.live(now)]
    return tuple(sorted((*stacks, *others), key=lambda client: client.name))


def _client(key: Key, now: float, exhausted: bool) -> Client:
    return Client(
        name=key.name,
        digests=tuple(secret.digest for secret in key.live(now)),
        rate=key.rate,
        burst=key.burst,
        may_choose=key.may_choose,
        exhausted=exhausted,
    )
