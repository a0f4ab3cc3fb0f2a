"""API keys of the gateway's clients: who has one, what it allows, and until when it counts.

Reads and writes `home/fleet/doors/keys.json`, which holds SHA-256 digests of keys, never a key. A key is 192 random
bits, so its digest cannot be turned back by guessing and needs no salt (NIST SP 800-63B, 5.1.2.2). Changes are made
under the fleet's lock; who makes one brings the gateway to it afterwards (`Gateway.apply`).
"""

import hashlib
import secrets
import time
from pathlib import Path

from pydantic import Field

from pipeline.contracts.base import Contract
from pipeline.errors import SpecError
from pipeline.stack.layout import Layout, read_json
from pipeline.whole_files import write_atomically

NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
CLIENT = "client"
PROBE_CLIENT = "slipway-probe"
OWN = (CLIENT, PROBE_CLIENT)
"""Clients whose keys the stack makes itself."""
PREFIX = "sk-slipway-"
GRACE_S = 24 * 3600.0
"""How long the key before a rotation goes on counting, unless somebody says otherwise."""


class Secret(Contract):
    """One key that counts, by its digest."""

    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_at: float
    expires_at: float | None = None
    """Seconds since the epoch; None: as long as nobody rotates or revokes it."""

    def counts(self, now: float) -> bool:
        return self.expires_at is None or now < self.expires_at


class Allowed(Contract):
    """What a key allows."""

    rate: float | None = Field(default=None, ge=0.001, le=100_000)
    """Requests a second, in the long run; None: as many as the fleet answers."""
    burst: int | None = Field(default=None, ge=1, le=1_000_000)
    """Requests at once; None: those of one second, at least one."""
    tokens_per_day: int | None = Field(default=None, ge=1)
    """Of prompts and completions together, from midnight to midnight in UTC; None: no limit."""
    may_choose: bool = False
    """It may send `x-slipway-canary`."""


class Key(Allowed):
    """A client's key: one secret, or two for a while after a rotation."""

    name: str = Field(pattern=NAME)
    created_at: float
    secrets: tuple[Secret, ...] = ()
    revoked_at: float | None = None

    def live(self, now: float) -> tuple[Secret, ...]:
        """The secrets that open the door at `now`."""
        return () if self.revoked_at else tuple(secret for secret in self.secrets if secret.counts(now))


class KeyRing(Contract):
    """Every key, also revoked ones: their names are not given again, so that logs stay true."""

    keys: tuple[Key, ...] = ()

    def get(self, name: str) -> Key:
        """The key of client `name`.

        Raises:
            SpecError: there is none.
        """
        found = next((key for key in self.keys if key.name == name), None)
        if found is None:
            known = ", ".join(key.name for key in self.keys) or "none"
            own = f"; the key of {name} is the stack's own" if name in OWN else ""
            raise SpecError(f"there is no key {name!r}{own}; there are: {known}. `slipway keys create` makes one")
        return found

    def with_key(self, key: Key) -> "KeyRing":
        """Adds it, or replaces the one of the same name."""
        others = [kept for kept in self.keys if kept.name != key.name]
        return KeyRing(keys=tuple(sorted((*others, key), key=lambda kept: kept.name)))


def create(ring: KeyRing, name: str, allowed: Allowed, now: float) -> tuple[KeyRing, str]:
    """A new client with a new key.

    Returns:
        The ring, and the key itself, which is kept nowhere.

    Raises:
        SpecError: the name is taken, or was once; or `allowed` has a burst of no rate, which limits nothing.
    """
    if allowed.burst is not None and allowed.rate is None:
        raise SpecError(f"a burst of {allowed.burst} requests without a rate limits nothing: give a rate, too")
    if name in OWN or any(key.name == name for key in ring.keys):
        open_ones = {key.name for key in ring.keys if not key.revoked_at}
        new = f", or `slipway keys rotate {name}` for a new key" if name in open_ones else ""
        raise SpecError(f"the name {name!r} is taken, or was once: choose another{new}")
    fresh = new_key()
    secret = Secret(digest=digest_of(fresh), created_at=now)
    return ring.with_key(Key(name=name, created_at=now, secrets=(secret,), **dict(allowed))), fresh


def rotate(ring: KeyRing, name: str, grace_s: float, now: float) -> tuple[KeyRing, str]:
    """A second key for a client; those that it has count for `grace_s` more seconds at most.

    Returns:
        The ring, and the new key, which is kept nowhere.

    Raises:
        SpecError: there is no such key, or it was revoked.
    """
    key = ring.get(name)
    if key.revoked_at is not None:
        raise SpecError(f"the key {name!r} was revoked and stays so; make one under another name")
    fresh = new_key()
    leaving = tuple(
        secret.model_copy(update={"expires_at": min(now + grace_s, secret.expires_at or now + grace_s)})
        for secret in key.live(now)
    )
    held = (*(secret for secret in leaving if secret.counts(now)), Secret(digest=digest_of(fresh), created_at=now))
    return ring.with_key(key.model_copy(update={"secrets": held})), fresh


def revoke(ring: KeyRing, name: str, now: float) -> KeyRing:
    """No key of this client counts any more. Harmless to repeat."""
    key = ring.get(name)
    return ring.with_key(key.model_copy(update={"secrets": (), "revoked_at": key.revoked_at or now}))


def new_key() -> str:
    return f"{PREFIX}{secrets.token_urlsafe(24)}"


def digest_of(key: str) -> str:
    """As the gateway computes it (doors.lua)."""
    return hashlib.sha256(key.encode()).hexdigest()


# --- the file ----------------------------------------------------------------------------------------------------


def ring_path(layout: Layout) -> Path:
    return layout.fleet_path / "doors" / "keys.json"


def read_ring(layout: Layout) -> KeyRing:
    """Every key as it is now.

    Raises:
        SpecError: the file is damaged.
    """
    path = ring_path(layout)
    return read_json(path, KeyRing) if path.exists() else KeyRing()


def write_ring(layout: Layout, ring: KeyRing) -> None:
    """Replaces the file. The caller holds the fleet's lock."""
    path = ring_path(layout)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, ring.model_dump_json(indent=2) + "\n")


def clock() -> float:
    """Seconds since the epoch."""
    return time.time()
