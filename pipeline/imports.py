"""Keeps packages out of a process that has no use for them, where a library would import them for seconds."""

import sys


def hide(*names: str) -> None:
    """Makes a later `import name` fail in this process, as if the package were not installed: libraries that can do
    without it go on without. A package that is imported already stays."""
    for name in names:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
