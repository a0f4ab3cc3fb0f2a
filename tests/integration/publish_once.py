"""A publisher for tests to kill: `python publish_once.py URI FOLDER` says `ready`, waits for a line, and publishes.

    python publish_once.py URI FOLDER PARTS

uploads so many parts of a big file to S3, says `held`, and sends the others only when its input ends.
"""

import itertools
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import artifacts, settings
from pipeline.artifacts import s3
from tests.artifact_samples import manifest_of

UploadPart = Callable[..., Any]


def held_after(
    upload_part: UploadPart, parts: int, *, arrived: Callable[[], object], hold: Callable[[], object]
) -> UploadPart:
    """`upload_part` of boto3's client that lets so many calls through and holds the others, whatever their threads.

    Args:
        arrived: called once the server has answered the last of those that were let through.
        hold: returns when the others may go on.
    """
    let_through, answered = threading.Semaphore(parts), itertools.count(1)

    def held(**request: object) -> object:
        if not let_through.acquire(blocking=False):
            hold()
        answer = upload_part(**request)
        if next(answered) == parts:
            arrived()
        return answer

    return held


def main(uri: str, folder: Path, parts: int | None = None) -> None:
    manifest = manifest_of(folder, key=uri.rpartition("/")[2])
    if parts is not None:
        client = s3.open_client(settings.load().s3_endpoint)
        client.upload_part = held_after(
            client.upload_part, parts, arrived=lambda: print("held", flush=True), hold=sys.stdin.read
        )
    print("ready", flush=True)
    sys.stdin.readline()
    print(artifacts.publish(uri, folder, manifest).digest, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
