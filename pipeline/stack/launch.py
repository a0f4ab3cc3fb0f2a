"""Becomes one supervised program: `python launch.py PROGRAM.json`, run by supervisord.

Reads the program's description and writes its pid and start time beside it, so that `up` and `down` find it again even
when supervisord was killed. A program of its own, and not lines in supervisord's configuration, because that format
has no way to quote every character.
"""

import json
import os
import signal
import sys
from pathlib import Path

import psutil


def main() -> None:
    path = Path(sys.argv[1])
    program = json.loads(path.read_bytes())
    pid_path = path.with_suffix(".pid")
    if program["kill_remains"]:
        kill_remains(pid_path)
    own = psutil.Process()
    pid_path.write_text(json.dumps({"pid": own.pid, "created": own.create_time()}))
    for name, value in program["environment"].items():
        os.putenv(name, value)  # not through `env`: secrets must not stand on a command line, even for a moment
    command = as_user(program["user"], program["command"]) if program["user"] else program["command"]
    os.chdir(program["directory"] or path.parent)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


def as_user(user: str, command: list[str]) -> list[str]:
    """The command as another user, who may still pass through and write to folders that are root's alone.

    PostgreSQL refuses to run as root, and the home and the environments may lie where no other user can go.
    """
    keep = "-all,+dac_override"
    return ["setpriv", "--reuid", user, "--clear-groups", "--inh-caps", keep, "--ambient-caps", keep, *command]


def kill_remains(pid_path: Path) -> None:
    """Ends what the previous run left in its process group.

    A group keeps its number reserved while it has members, so a member that started before the pid file could have
    been written anew is the program's own.
    """
    if not pid_path.exists():
        return
    previous = json.loads(pid_path.read_bytes())
    for process in psutil.process_iter():
        try:
            belongs = os.getpgid(process.pid) == previous["pid"] and process.create_time() >= previous["created"]
            if belongs and process.pid != os.getpid():
                process.send_signal(signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue


if __name__ == "__main__":
    main()
