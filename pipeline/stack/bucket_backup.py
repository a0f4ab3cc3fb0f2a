"""Copies every object of the store's bucket to a tar archive on standard output, and back.

    python -m pipeline.stack.bucket_backup save > bucket.tar
    python -m pipeline.stack.bucket_backup load < bucket.tar

One object at a time passes through memory in pieces, so the bucket may be larger than this machine. What an object says
of itself (its sha256) is kept in the archive. `load` adds and replaces; it removes nothing.
"""

import argparse
import json
import sys
import tarfile
from typing import IO, Any

from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import BotoCoreError, ClientError

from pipeline import settings
from pipeline.artifacts.s3 import open_client
from pipeline.errors import EXIT_TRANSIENT, DataError, SlipwayError, SpecError

METADATA = "SLIPWAY.metadata"
"""A keyword of the archive's format for what tar itself has no place for."""
END = "SLIPWAY.end"
"""The keyword of the last entry, which says how many there are before it: an archive without it was cut."""
DONE = {"save": "saved", "load": "loaded"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("save", "load"))
    action = parser.parse_args().action
    try:
        configured = settings.load()
        if not configured.store_uri.startswith("s3://"):
            raise SpecError(f"SLIPWAY_STORE is {configured.store_uri}, expected s3://BUCKET/…: a folder needs only cp")
        bucket = configured.store_uri.removeprefix("s3://").partition("/")[0]
        client = open_client(configured.s3_endpoint)
        done = save(client, bucket, sys.stdout.buffer) if action == "save" else load(client, bucket, sys.stdin.buffer)
    except SlipwayError as error:
        print(f"error {error.exit_code} {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except (BotoCoreError, ClientError, S3UploadFailedError) as error:
        print(f"error {EXIT_TRANSIENT} TransientError: the S3 server refuses or is away: {error}", file=sys.stderr)
        return EXIT_TRANSIENT
    print(f"{DONE[action]} {done[0]} objects, {done[1] / 1e6:.1f} MB", file=sys.stderr)
    return 0


def save(client: Any, bucket: str, target: IO[bytes]) -> tuple[int, int]:
    """Writes the archive; how many objects and bytes."""
    count = total = 0
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for item in page.get("Contents", ()):
                answer = client.get_object(Bucket=bucket, Key=item["Key"])
                entry = tarfile.TarInfo(item["Key"])
                entry.size = answer["ContentLength"]
                entry.pax_headers = {METADATA: json.dumps(answer["Metadata"])}
                archive.addfile(entry, answer["Body"])
                count, total = count + 1, total + entry.size
        end = tarfile.TarInfo("end")
        end.pax_headers = {END: str(count)}
        archive.addfile(end)
    return count, total


def load(client: Any, bucket: str, source: IO[bytes]) -> tuple[int, int]:
    """Reads the archive; how many objects and bytes.

    Raises:
        DataError: it is no archive of `save`, or ends too early.
    """
    count = total = 0
    try:
        with tarfile.open(fileobj=source, mode="r|") as archive:
            for entry in archive:
                if END in entry.pax_headers:
                    return _counted(int(entry.pax_headers[END]), count), total
                metadata = json.loads(entry.pax_headers[METADATA])
                client.upload_fileobj(Forward(archive.extractfile(entry)), bucket, entry.name, {"Metadata": metadata})
                count, total = count + 1, total + entry.size
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise DataError(f"after {count} objects the archive cannot be read ({error}): is it one of `save`?") from error
    raise DataError(
        f"the archive ends after {count} objects without its last entry: it was cut; take an earlier backup"
    )


def _counted(expected: int, count: int) -> int:
    if count != expected:
        raise DataError(f"the archive holds {count} objects, {expected} were saved; take an earlier backup")
    return count


class Forward:
    """A file of the archive as boto3 wants it: one that cannot go back, and says so."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(size)
        return data


if __name__ == "__main__":
    sys.exit(main())
