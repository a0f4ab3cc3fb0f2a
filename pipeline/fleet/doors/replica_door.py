"""The secret that opens replicas: who asks one for an answer must know it, so that nobody goes past the gateway.

Reads `home/fleet/replica_key`, made at first use and readable by the owner alone. The gateway adds it to what it sends
to a replica, over whatever a client sent; a replica is told the digest alone (`replica_middleware.Door`).
"""

import secrets

from pipeline.stack.layout import Layout
from pipeline.whole_files import made_once

HEADER = "x-slipway-door"


def secret(layout: Layout) -> str:
    """This home's."""
    return made_once(layout.fleet_path / "replica_key", lambda: secrets.token_urlsafe(24))
