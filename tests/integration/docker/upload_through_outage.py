"""Publishes an artifact of one large file through the store's client, as a step's tries do, and checks what is there.

    python upload_through_outage.py      (in a service of docker compose that may use the store)

Says `sending` when the first parts have arrived, and at last, as JSON, how many tries it took and how long they were.
"""

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from pipeline import artifacts, settings
from pipeline.artifacts.digests import file_entries
from pipeline.artifacts.s3 import S3Store
from pipeline.artifacts.transfer import content_root
from pipeline.contracts.manifest import Manifest, manifest_digest
from pipeline.errors import TransientError

SIZE_BYTES = 320 << 20
CHUNK_BYTES = 16 << 20
STEP = "outage"
RETRY_S = (5, 10, 20, 40, 80)
"""As the tasks of a release wait between their tries."""


def main() -> None:
    store = artifacts.open_store(settings.load().store_uri)
    assert isinstance(store, S3Store)
    with tempfile.TemporaryDirectory() as folder:
        key = write(Path(folder) / "weights.bin")
        manifest = manifest_of(Path(folder), key)
        uri = f"{store.uri}/{STEP}/{key}"
        threading.Thread(target=say_when_parts_arrive, args=(store,), daemon=True).start()
        began = time.monotonic()
        tries = publish(uri, Path(folder), manifest)
        took_s = time.monotonic() - began
    expected = {f"{STEP}/{key}/manifest.json", f"{STEP}/{key}/{manifest.root}/weights.bin"}
    with tempfile.TemporaryDirectory() as cache:
        fetched = artifacts.fetch(manifest.ref(uri), Path(cache))
        arrived = (fetched / "weights.bin").stat().st_size
    print(
        json.dumps(
            {
                "tries": tries,
                "seconds": took_s,
                "whole": arrived == SIZE_BYTES,
                "only_what_belongs": set(store.names(f"{STEP}/{key}")) == expected,
                "unfinished": len(unfinished(store)),
            }
        )
    )


def write(path: Path) -> str:
    """Random bytes; gives a key for them."""
    with path.open("wb") as file:
        for _ in range(SIZE_BYTES // CHUNK_BYTES):
            file.write(os.urandom(CHUNK_BYTES))
    return os.urandom(32).hex()


def manifest_of(folder: Path, key: str) -> Manifest:
    files = file_entries(folder)
    return Manifest(
        step=STEP,
        key=key,
        digest=manifest_digest(STEP, key, files, {}),
        root=content_root(files),
        files=files,
        spec={},
        result={},
        code_version="0",
        environment_digest="0" * 64,
        started_at="2026-01-01",
        duration_s=1.0,
    )


def publish(uri: str, folder: Path, manifest: Manifest) -> int:
    """How many tries it took."""
    for number, pause_s in enumerate(RETRY_S, 1):
        try:
            artifacts.publish(uri, folder, manifest)
        except TransientError as error:
            print(f"try {number}: {error}", file=sys.stderr, flush=True)
            time.sleep(pause_s)
        else:
            return number
    raise TimeoutError(f"{len(RETRY_S)} tries were not enough")


def say_when_parts_arrive(store: S3Store) -> None:
    while not any(
        store.client.list_parts(Bucket=store.bucket, Key=found["Key"], UploadId=found["UploadId"]).get("Parts")
        for found in unfinished(store)
    ):
        time.sleep(0.05)
    print("sending", flush=True)


def unfinished(store: S3Store) -> list[dict[str, str]]:
    """Uploads that were begun and not completed."""
    asked = {"Bucket": store.bucket, "Prefix": f"{store.prefix}{STEP}/"}
    found: list[dict[str, str]] = store.client.list_multipart_uploads(**asked).get("Uploads", [])
    return found


if __name__ == "__main__":
    main()
