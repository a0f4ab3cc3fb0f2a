"""`slipway keys`: changes the ring of keys and brings the gateway to it."""

import json
import re
import sys
import time
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError
from rich.table import Table

from pipeline import audit
from pipeline.commands.output import console, here
from pipeline.errors import SpecError, TransientError
from pipeline.fleet.doors import budgets
from pipeline.fleet.doors import keys as rings
from pipeline.fleet.doors.keys import Allowed, Key, KeyRing
from pipeline.fleet.gateway import Gateway
from pipeline.stack.layout import Layout

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def create(name: str, options: dict[str, Any]) -> None:
    """Makes a client's first key and prints it.

    Raises:
        SpecError: a value out of range, or a name that is taken.
        TransientError: the gateway does not know the key yet.
    """
    layout, _ = here()
    try:
        allowed = Allowed.model_validate(options)
        Key(name=name, created_at=0)
    except ValidationError as error:
        raise SpecError(_in_words(error)) from error
    fresh = change(layout, "key-created", name, lambda ring: rings.create(ring, name, allowed, rings.clock()))
    _say_key(name, fresh)
    bring(layout)


def rotate(name: str, grace: str) -> None:
    """Makes a client's next key and prints it."""
    layout, _ = here()
    grace_s = seconds(grace)
    fresh = change(layout, "key-rotated", name, lambda ring: rings.rotate(ring, name, grace_s, rings.clock()))
    _say_key(name, fresh)
    bring(layout)
    print(f"The key before counts for {grace} more at most.", file=sys.stderr)


def revoke(name: str) -> None:
    """Refuses a client from now on."""
    layout, _ = here()
    change(layout, "key-revoked", name, lambda ring: (rings.revoke(ring, name, rings.clock()), name))
    bring(layout)
    console.print(f"The key of {name} opens nothing any more.")


def change(layout: Layout, action: str, name: str, how: Callable[[KeyRing], tuple[KeyRing, str]]) -> str:
    """Changes the ring under the fleet's lock, and puts that into the audit log; what `how` made beside it."""
    with Gateway(layout).files.lock():
        ring, made = how(rings.read_ring(layout))
        audit.record(layout, action=action, actor=audit.person(), reason=f"client {name}", details={"client": name})
        rings.write_ring(layout, ring)
    return made


def bring(layout: Layout) -> None:
    """Brings the gateway to the ring.

    Raises:
        TransientError: it did not take it; the ring stays changed, and counts as soon as the gateway starts.
        SpecError: a file of the fleet is damaged; the ring stays changed, and counts once that is mended.
    """
    gateway = Gateway(layout)
    try:
        gateway.apply()
    except TransientError as error:
        raise TransientError(
            f"the change is kept, but the gateway goes by the keys before until it runs again (`slipway up`): {error}"
        ) from error
    except SpecError as error:
        raise SpecError(
            f"the change is kept, but the gateway goes by the keys before until this is mended: {error}"
        ) from error


def show(*, as_json: bool) -> None:
    """Every client, with its limits."""
    layout, _ = here()
    now = rings.clock()
    used = budgets.read_usage(layout).of(budgets.today(now))
    rows = [{**_row(key, now), "tokens_today": used.get(key.name, 0)} for key in rings.read_ring(layout).keys]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("client", "state", "requests/s", "burst", "tokens a day", "used today", "may choose", "made"):
        table.add_column(heading)
    for row in rows:
        limits = [str(row[name]) if row[name] is not None else "-" for name in ("rate", "burst", "tokens_per_day")]
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created_at"]))
        table.add_row(
            row["name"], row["state"], *limits, f"{row['tokens_today']:,}", "yes" if row["may_choose"] else "-", made
        )
    console.print(table)
    console.print(f"Beside these, the stack's own: {', '.join(rings.OWN)}.")


def _row(key: Key, now: float) -> dict[str, Any]:
    live = key.live(now)
    leaving = [secret.expires_at for secret in live if secret.expires_at]
    state = "revoked" if key.revoked_at else "open" if live else "expired"
    if leaving:
        state = f"open, the key before until {time.strftime('%m-%d %H:%M:%S', time.localtime(max(leaving)))}"
    return {
        "name": key.name,
        "state": state,
        "keys": [{"sha256": secret.digest, "expires_at": secret.expires_at} for secret in live],
        **key.model_dump(include={"rate", "burst", "tokens_per_day", "may_choose", "created_at", "revoked_at"}),
    }


def seconds(text: str) -> float:
    """`90s`, `10m`, `24h` or `7d` in seconds.

    Raises:
        SpecError: something else.
    """
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if found is None:
        raise SpecError(f"{text!r} is no length of time: expected a number with s, m, h or d, such as 24h")
    return float(int(found[1]) * UNITS[found[2]])


def _say_key(name: str, key: str) -> None:
    """The key alone on standard output, so that a script can keep it."""
    print(f"The key of {name}, shown this once:", file=sys.stderr)
    print(key)


def _in_words(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, found['loc']))} {found['input']!r}: {found['msg']}" for found in error.errors()
    )
