"""Which code this is, for manifests and images. Standard library only: set-up asks before anything is installed.

`python -m pipeline.code_version` prints it.
"""

import functools
import subprocess
from pathlib import Path

from pipeline import __version__

ROOT = Path(__file__).resolve().parent.parent
BAKED = "CODE_VERSION"
"""The file at the root of an image's tree that says what `code_version` said of the tree it was built from."""


@functools.cache
def code_version(root: Path = ROOT) -> str:
    """The release, and where the tree is a git checkout its commit: `0.1.0+g1a2b3c4d5e6f`, `.dirty` if edited.

    An image holds neither git nor a checkout: its build writes the answer into a file.
    """
    if _git(root, "rev-parse", "--show-toplevel") != str(root):
        return _baked(root) or __version__
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return __version__
    dirty = ".dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else ""
    return f"{__version__}+g{commit}{dirty}"


def _baked(root: Path) -> str:
    path = root / BAKED
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _git(root: Path, *arguments: str) -> str:
    """What git says; empty without git, outside a checkout, or for a checkout of somebody else's."""
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    print(code_version())
