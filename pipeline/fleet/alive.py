"""Signs of life of the programs that keep the fleet and answer nobody: each touches a file at every round.

Standard library only, since the health checks of containers read them every few seconds.
"""

from pathlib import Path

FILES = {
    "autoscaler": "autoscaler/alive",
    "doors": "doors/alive",
    "replica-guard": "replica-guard.alive",
}
"""Program to its file in the fleet's folder. The autoscaler is silent while a replica drains."""
MAX_SILENCE_S = 120.0


def touch(fleet_path: Path, program: str) -> None:
    path = fleet_path / FILES[program]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch()


def last_seen(fleet_path: Path) -> dict[str, float]:
    """Program to when it touched its file last, in seconds of Unix time; those that never ran are left out."""
    paths = {program: fleet_path / file for program, file in FILES.items()}
    return {program: path.stat().st_mtime for program, path in paths.items() if path.exists()}
