"""Small artifacts for the tests of stores."""

import hashlib
from pathlib import Path

from pipeline.artifacts.digests import file_entries
from pipeline.artifacts.transfer import content_root
from pipeline.contracts.manifest import Manifest, manifest_digest

KEY = "ab" * 32


def write_files(folder: Path, sizes: dict[str, int], seed: bytes = b"") -> Path:
    """Files of pseudo-random bytes, the same for the same names, sizes and seed."""
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(hashlib.shake_128(name.encode() + seed).digest(size))
    return folder


def manifest_of(folder: Path, *, step: str = "validate", key: str = KEY, started_at: str = "2026-01-01") -> Manifest:
    """The manifest of what lies in `folder`."""
    files = file_entries(folder)
    result = {"rows": 3}
    return Manifest(
        step=step,
        key=key,
        digest=manifest_digest(step, key, files, result),
        root=content_root(files),
        files=files,
        spec={},
        result=result,
        code_version="0",
        environment_digest="0" * 64,
        started_at=started_at,
        duration_s=1.0,
    )
