"""A publisher for tests to kill: `python publish_once.py URI FOLDER` says `ready`, waits for a line, and publishes."""

import sys
from pathlib import Path

from pipeline import artifacts
from tests.artifact_samples import manifest_of


def main(uri: str, folder: Path) -> None:
    manifest = manifest_of(folder, key=uri.rpartition("/")[2])
    print("ready", flush=True)
    sys.stdin.readline()
    print(artifacts.publish(uri, folder, manifest).digest, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
