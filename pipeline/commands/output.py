"""Where the commands print to: rich on a terminal, plain lines elsewhere."""

import sys
from pathlib import Path

from rich.console import Console

from pipeline import settings
from pipeline.errors import SpecError
from pipeline.settings import Settings
from pipeline.stack.layout import Layout

PIPE_WIDTH = 160
"""Characters of a table's line in a file or a pipe, whose reader has no width."""

console = Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else PIPE_WIDTH)


def here() -> tuple[Layout, Settings]:
    """The home folder and the settings of this call."""
    configured = settings.load()
    return Layout(Path(configured.home_path)), configured


def local_only(command: str, *, instead: str) -> None:
    """For commands of the local stack.

    Raises:
        SpecError: this is the command line of docker compose.
    """
    if settings.load().secrets_path:
        raise SpecError(f"`slipway {command}` is for the stack of one machine; here, say `{instead}` outside")


def in_seconds(seconds: float) -> str:
    """`4.2 s`, `38 s`, `3 min 05 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def in_bytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:,.2f} MB" if size_bytes < 1e9 else f"{size_bytes / 1e9:,.2f} GB"
