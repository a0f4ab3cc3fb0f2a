"""Becomes a replica once its bundle is seen to be what was signed: at each start of its process, whoever starts it.

    python -m pipeline.fleet.replica_start DIGEST BUNDLE COMMAND…

Reads every byte of the bundle, as the engine does next, out of memory then. A bundle whose digest is another is not
loaded: the message names both, and the exit code is 65.
"""

import os
import sys
from pathlib import Path

from pipeline import json_lines
from pipeline.artifacts.digests import folder_digest
from pipeline.errors import DataError, IntegrityError
from pipeline.fleet.replica_middleware import identity


def check(folder: Path, digest: str) -> None:
    """Compares the bytes in `folder` with what was signed.

    Raises:
        IntegrityError: they are others, or gone.
    """
    try:
        found = folder_digest(folder)
    except OSError as error:
        raise IntegrityError(f"the bundle {folder} cannot be read: {error}; promote the version again") from error
    if found != digest:
        raise IntegrityError(
            f"the bundle {folder} is not the one that was signed and rolled out: its digest is {found}, expected"
            f" {digest}; see who wrote there, remove the folder, and promote the version again"
        )


def main() -> int:
    digest, folder, *command = sys.argv[1:]
    try:
        check(Path(folder), digest)
    except DataError as error:
        print(json_lines.line("replica", str(error), level="error", process="MainProcess", **identity()), flush=True)
        return error.exit_code
    return os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
