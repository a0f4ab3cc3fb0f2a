"""Keys: made, rotated, revoked, and what of them is kept."""

from pathlib import Path

import pytest

from pipeline import audit
from pipeline.commands.keys import change, seconds
from pipeline.errors import SpecError
from pipeline.fleet.doors import keys
from pipeline.fleet.doors.clients import clients_of
from pipeline.fleet.doors.filters import bucket
from pipeline.fleet.doors.keys import Allowed, KeyRing
from pipeline.stack.layout import Layout

NOW = 1_800_000_000.0
OWN = {"client": "own-key", "slipway-probe": "probe-key"}


def opens(ring: KeyRing, key: str, now: float = NOW) -> str | None:
    """The client that a key opens the door for."""
    found = clients_of(ring, OWN, frozenset(), now)
    return next((client.name for client in found if keys.digest_of(key) in client.digests), None)


def test_a_key_is_kept_as_a_digest_alone(tmp_path: Path) -> None:
    """In a file that only its owner may read."""
    layout = Layout(tmp_path)
    ring, key = keys.create(KeyRing(), "shop", Allowed(rate=5), NOW)
    keys.write_ring(layout, ring)
    assert keys.read_ring(layout) == ring
    path = keys.ring_path(layout)
    assert key not in path.read_text()
    assert keys.digest_of(key) in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_a_burst_without_a_rate_is_refused() -> None:
    """It would limit nothing."""
    with pytest.raises(SpecError, match="a burst of 10 requests without a rate limits nothing"):
        keys.create(KeyRing(), "shop", Allowed(burst=10), NOW)


def test_a_name_that_was_revoked_is_not_advised_to_be_rotated() -> None:
    """That would be refused, too."""
    ring, _ = keys.create(KeyRing(), "shop", Allowed(), NOW)
    with pytest.raises(SpecError, match="choose another, or `slipway keys rotate shop`"):
        keys.create(ring, "shop", Allowed(), NOW)
    for taken, name in ((keys.revoke(ring, "shop", NOW), "shop"), (ring, "client")):
        with pytest.raises(SpecError, match=r"choose another$"):
            keys.create(taken, name, Allowed(), NOW)


def test_two_keys_are_never_the_same_and_cannot_be_guessed() -> None:
    """192 random bits, in letters that a header takes as they are."""
    made = {keys.new_key() for _ in range(1000)}
    assert len(made) == 1000
    assert all(len(key) == len(keys.PREFIX) + 32 for key in made)


def test_after_a_rotation_both_keys_open_until_the_time_of_grace_is_over() -> None:
    """Then the new one alone."""
    ring, first = keys.create(KeyRing(), "shop", Allowed(), NOW)
    ring, second = keys.rotate(ring, "shop", 60.0, NOW)
    assert (opens(ring, first, NOW + 59), opens(ring, second, NOW + 59)) == ("shop", "shop")
    assert (opens(ring, first, NOW + 60), opens(ring, second, NOW + 60)) == (None, "shop")


def test_a_second_rotation_does_not_lengthen_the_life_of_the_first_key() -> None:
    """A key's end only ever comes nearer."""
    ring, first = keys.create(KeyRing(), "shop", Allowed(), NOW)
    ring, _ = keys.rotate(ring, "shop", 60.0, NOW)
    ring, third = keys.rotate(ring, "shop", 3600.0, NOW + 30)
    assert opens(ring, first, NOW + 61) is None
    assert opens(ring, third, NOW + 61) == "shop"
    ring, _ = keys.rotate(ring, "shop", 0.0, NOW + 100)
    assert len(ring.get("shop").secrets) == 1


def test_a_revoked_key_stays_revoked_and_its_name_taken() -> None:
    """So that a name in a log means one client for ever."""
    ring, first = keys.create(KeyRing(), "shop", Allowed(), NOW)
    ring = keys.revoke(ring, "shop", NOW + 5)
    assert keys.revoke(ring, "shop", NOW + 50) == ring
    assert opens(ring, first, NOW + 5) is None
    with pytest.raises(SpecError, match="was revoked"):
        keys.rotate(ring, "shop", 60.0, NOW)
    with pytest.raises(SpecError, match="taken"):
        keys.create(ring, "shop", Allowed(), NOW)


@pytest.mark.parametrize("name", ["client", "slipway-probe"])
def test_the_stacks_own_names_are_not_given(name: str) -> None:
    """Neither made nor revoked here; their keys open the door all the same."""
    with pytest.raises(SpecError, match="taken"):
        keys.create(KeyRing(), name, Allowed(), NOW)
    with pytest.raises(SpecError, match="own"):
        keys.revoke(KeyRing(), name, NOW)
    assert opens(KeyRing(), OWN[name]) == name


def test_a_damaged_ring_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    """It says which file."""
    layout = Layout(tmp_path)
    keys.ring_path(layout).parent.mkdir(parents=True)
    keys.ring_path(layout).write_text('{"keys": [{')
    with pytest.raises(SpecError, match=r"keys\.json is damaged"):
        keys.read_ring(layout)


def test_rates_become_whole_requests_in_whole_seconds() -> None:
    """As Envoy counts them."""
    assert bucket(2.5, None) == {"max_tokens": 2, "tokens_per_fill": 5, "fill_interval": "2s"}
    assert bucket(20, 40) == {"max_tokens": 40, "tokens_per_fill": 20, "fill_interval": "1s"}
    assert bucket(0.1, None) == {"max_tokens": 1, "tokens_per_fill": 1, "fill_interval": "10s"}


def test_lengths_of_time_are_read_with_their_unit() -> None:
    """And nothing else."""
    assert [seconds(text) for text in ("90s", "10m", "24h", "7d")] == [90, 600, 86_400, 604_800]
    for text in ("24", "h", "-1h", "1w", "1.5h", ""):
        with pytest.raises(SpecError, match="length of time"):
            seconds(text)


def test_every_change_of_a_key_is_in_the_audit_log_without_the_key(tmp_path: Path) -> None:
    """Who, what and whose."""
    layout = Layout(tmp_path)
    made = change(layout, "key-created", "shop", lambda ring: keys.create(ring, "shop", Allowed(), NOW))
    change(layout, "key-revoked", "shop", lambda ring: (keys.revoke(ring, "shop", NOW), ""))
    entries = list(audit.read_entries(layout))
    assert [(entry.action, entry.details["client"]) for entry in entries] == [
        ("key-created", "shop"),
        ("key-revoked", "shop"),
    ]
    assert made not in (tmp_path / "audit" / "log.jsonl").read_text()
