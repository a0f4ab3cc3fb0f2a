"""The secret that opens replicas: who asks one for an answer must know it, so that nobody goes past the gateway.

Reads `home/fleet/replica_key`, made at first use and readable by the owner alone. The gateway adds it to what it sends
to a replica, over whatever a client sent; a replica is told the digest alone (`replica_middleware.Door`).
"""

import secrets

from pipeline.fleet.state import write_atomically
from pipeline.stack.layout import Layout

HEADER = "x-slipway-door"


def secret(layout: Layout) -> str:
    """This home's."""
    path = layout.fleet_path / "replica_key"
    if not path.exists():
        layout.fleet_path.mkdir(parents=True, exist_ok=True)
        write_atomically(path, secrets.token_urlsafe(24))
    return path.read_text()
