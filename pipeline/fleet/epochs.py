"""What the gateway's program should run and what it runs: files that it, `up` and `slipway gateway restart` share.

`FOLDER/envoy.json` says what should run (written here), `FOLDER/epoch.json` what does (written by `envoy_keeper`).
"""

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
import psutil
from pydantic import ValidationError

from pipeline.contracts.base import Contract, canonical_json, sha256_hex
from pipeline.errors import TransientError
from pipeline.whole_files import write_atomically

WANTED_FILE, STANDING_FILE = "envoy.json", "epoch.json"
POLL_S = 0.1
DRAIN_S = 300
"""How long the one before goes on with what it has begun. It may not be ended earlier: the new one asks it for its
figures until then, and aborts if there is no answer."""


class Wanted(Contract):
    """What should run. Any difference starts the next epoch."""

    command: tuple[str, ...]
    """Envoy's, without what belongs to an epoch."""
    binary: str
    """Tells one build of Envoy from another at the same path."""
    bootstrap: str
    """Digest of bootstrap.json."""
    drain_s: int = DRAIN_S
    request: str = ""
    """The last restart that somebody asked for."""

    @property
    def digest(self) -> str:
        return sha256_hex(canonical_json(self.model_dump(mode="json")))[:16]


class Process(Contract):
    """A process that may outlive who started it."""

    pid: int
    created: float


class Epoch(Contract):
    """One Envoy."""

    number: int
    base_id: int
    process: Process
    wanted: str
    """The digest of what it was started as."""
    compatible: str
    """Envoy's hot restart version: only equal ones can take over from each other."""
    began_at: float


class Standing(Contract):
    """What runs."""

    current: Epoch | None = None
    coming: Epoch | None = None
    """The next one, until it is live."""
    intended: str = ""
    """The digest of what the next one is being started as, until its process is known."""
    draining: Process | None = None
    """The one before, as long as it finishes what it has begun."""
    refused: str = ""
    """The digest of something wanted that did not come up; it is not tried again."""
    reason: str = ""
    """Why not."""


def read_wanted(folder: Path) -> Wanted | None:
    """What should run; None if nobody has said so yet."""
    path = folder / WANTED_FILE
    return Wanted.model_validate_json(path.read_bytes()) if path.exists() else None


def write_wanted(folder: Path, command: tuple[str, ...], bootstrap: bytes) -> Wanted:
    """Says what should run; what somebody asked for besides stays."""
    before = read_wanted(folder)
    binary = os.stat(command[0])
    wanted = Wanted(
        command=command,
        binary=f"{binary.st_size}-{binary.st_mtime_ns}",
        bootstrap=sha256_hex(bootstrap),
        drain_s=before.drain_s if before else DRAIN_S,
        request=before.request if before else "",
    )
    return _keep(folder, wanted) if wanted != before else wanted


def ask_for_another(folder: Path, drain_s: int | None = None) -> Wanted:
    """Says that a new epoch of what runs should take over.

    Args:
        drain_s: how long the old one goes on with what it has begun, from now on; None: as long as before.

    Raises:
        TransientError: nothing runs.
    """
    wanted = read_wanted(folder)
    if wanted is None or server_info(folder) is None:
        raise TransientError("the gateway does not run: `./slipway up`")
    return _keep(folder, wanted.model_copy(update={"request": uuid.uuid4().hex, "drain_s": drain_s or wanted.drain_s}))


def _keep(folder: Path, wanted: Wanted) -> Wanted:
    write_atomically(folder / WANTED_FILE, wanted.model_dump_json(indent=1))
    return wanted


def read_standing(folder: Path) -> Standing:
    """What ran when it was last written; nothing if nothing ever did."""
    try:
        return Standing.model_validate_json((folder / STANDING_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return Standing()


def runs_as_wanted(folder: Path) -> bool:
    """Whether an Envoy takes requests that is the one wanted, or will be followed by it as soon as that can be.

    Raises:
        TransientError: what is wanted did not come up.
    """
    wanted, standing = read_wanted(folder), read_standing(folder)
    if wanted is None or standing.current is None:
        return False
    if standing.refused == wanted.digest:
        raise _refused(standing)
    is_next = standing.draining is not None and standing.coming is None
    return (standing.current.wanted == wanted.digest or is_next) and server_info(folder) is not None


def _refused(standing: Standing) -> TransientError:
    return TransientError(
        f"the gateway's next epoch did not come up: {standing.reason}; the one before goes on. Once what kept it is"
        " mended, `slipway gateway restart` tries again"
    )


def await_epoch(folder: Path, wanted: Wanted, timeout_s: float, poll_s: float = POLL_S) -> Epoch:
    """Returns the epoch that runs as `wanted`, as soon as it does.

    Raises:
        TransientError: Envoy did not come up so, or not in time; the one before goes on.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        standing = read_standing(folder)
        if standing.current and standing.current.wanted == wanted.digest:
            return standing.current
        if standing.refused == wanted.digest:
            raise _refused(standing)
        time.sleep(poll_s)
    draining = read_standing(folder).draining
    why = (
        f"the one before the present one (process {draining.pid}) still finishes what it has begun, for all the"
        " seconds that were given to it, and only then does the next epoch start, by itself"
        if draining
        else f"see {folder.parent / 'logs' / 'gateway.log'}"
    )
    raise TransientError(f"the gateway has no new epoch after {timeout_s:g} s: {why}")


def alive(process: Process) -> bool:
    """Whether it still runs; a dead one that nobody has waited for does not."""
    try:
        found = psutil.Process(process.pid)
        return abs(found.create_time() - process.created) < 0.1 and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def admin_url(folder: Path) -> str:
    """Where Envoy's own interface listens."""
    found = json.loads((folder / "bootstrap.json").read_bytes())["admin"]["address"]["socket_address"]
    return f"http://{found['address']}:{found['port_value']}"


def server_info(folder: Path) -> Any:
    """Envoy's answer over a connection of its own: one that was kept would still lead to the epoch before."""
    try:
        with httpx.Client(timeout=5.0, trust_env=False, verify=False) as client:
            return client.get(f"{admin_url(folder)}/server_info").raise_for_status().json()
    except httpx.HTTPError:
        return None
