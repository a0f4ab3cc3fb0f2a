"""Runs an S3 server in one container: Ceph's monitor, one object store daemon on a file, and the RADOS gateway.

Standard library only. Runs in any image that has Ceph's programs, as the user that owns /var/lib/ceph. Reads the
secrets s3_access_key and s3_secret_key at each start, so that changed ones count from then on. Keeps everything in
/var/lib/ceph/slipway; a first start that was cut short is begun anew. When one of the daemons dies, so does this
program, and the engine starts the container again.

    S3_CAPACITY_GIB   how much the store may hold at most; decided at the first start
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATE = Path("/var/lib/ceph/slipway")
MADE = STATE / "made"
MEMORY = Path("/tmp")
CONFIGURATION = MEMORY / "ceph.conf"
SECRETS = Path("/run/secrets")
MONITOR = "v2:127.0.0.1:3300"
PORT = 7480
USER = "slipway"
START_S = 180.0
STOP_S = 25.0

daemons: dict[str, "subprocess.Popen[bytes]"] = {}


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        serve()
    finally:
        stop()
    return 1


def serve() -> None:
    """Starts what is needed and returns when a daemon has died."""
    if not MADE.exists():
        shutil.rmtree(STATE, ignore_errors=True)
        make_folders()
    configure()
    if not MADE.exists():
        make_monitor()
    start("ceph-mon", "-i", "a")
    wait("the monitor", lambda: ceph("quorum_status") != "")
    if not MADE.exists():
        make_object_store()
    start("ceph-osd", "-i", "0", "-k", str(STATE / "osd" / "keyring"))
    wait("the object store", lambda: json.loads(ceph("osd", "stat", "-f", "json"))["num_up_osds"] == 1)
    set_keys()
    MADE.touch()
    start("radosgw", "-n", "client.rgw", "-k", str(STATE / "rgw.keyring"))
    wait("the gateway", answers)
    print(f"S3 is served on port {PORT}", flush=True)
    while not ended():
        time.sleep(1)
    print(f"ended by itself: {', '.join(ended())}", file=sys.stderr, flush=True)


def make_folders() -> None:
    for name in ("mon", "osd", "crash"):
        (STATE / name).mkdir(parents=True)
    (STATE / "fsid").write_text(str(uuid.uuid4()))
    (STATE / "capacity").write_text(os.environ.get("S3_CAPACITY_GIB") or "64")


def configure() -> None:
    """Only what a single node needs to be told; cephx stays on, the gateway does not come up without it."""
    (MEMORY / "run").mkdir(exist_ok=True)
    settings = {
        "fsid": (STATE / "fsid").read_text(),
        "mon host": f"[{MONITOR}]",
        "public addr": "127.0.0.1",
        "keyring": STATE / "keyring",
        "run dir": MEMORY / "run",
        "admin socket": f"{MEMORY}/run/$name.asok",
        "crash dir": STATE / "crash",
        "log to file": "false",
        "log to stderr": "true",
        "err to stderr": "true",
        "mon cluster log to file": "false",
        "mon cluster log to stderr": "false",
        "mon data": STATE / "mon",
        "osd data": STATE / "osd",
        "bluestore block size": int((STATE / "capacity").read_text()) << 30,
        "osd crush chooseleaf type": 0,
        "osd pool default size": 1,
        "osd pool default min size": 1,
        "osd pool default pg num": 4,
        "osd pool default pg autoscale mode": "off",
        "mon allow pool size one": "true",
        "osd memory target": 1 << 30,
        "rgw frontends": f"beast endpoint=0.0.0.0:{PORT}",
        "rgw thread pool size": 128,
    }
    CONFIGURATION.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))


def make_monitor() -> None:
    keyring, monmap = str(STATE / "keyring"), str(MEMORY / "monmap")
    everything = [part for who in ("mon", "osd", "mgr", "mds") for part in ("--cap", who, "allow *")]
    run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    run("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *everything)
    fsid = (STATE / "fsid").read_text()
    run("monmaptool", "--create", "--clobber", "--addv", "a", f"[{MONITOR}]", "--fsid", fsid, monmap)
    run("ceph-mon", *configured(), "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)


def make_object_store() -> None:
    name, keyring = str(uuid.uuid4()), str(STATE / "osd" / "keyring")
    number = ceph("osd", "new", name).strip()
    if number != "0":
        raise RuntimeError(f"the first object store daemon is number {number}, expected 0")
    ceph("auth", "get-or-create", "osd.0", "mon", "allow profile osd", "osd", "allow *", "-o", keyring)
    ceph("auth", "get-or-create", "client.rgw", "mon", "allow rw", "osd", "allow rwx", "-o", str(STATE / "rgw.keyring"))
    run("ceph-osd", *configured(), "-i", "0", "--mkfs", "--osd-uuid", name, "-k", keyring)


def set_keys() -> None:
    """Gives the one user the key pair of the secrets. By standard input, never on a command line."""
    access_key, secret_key = ((SECRETS / f"s3_{name}").read_text().strip() for name in ("access_key", "secret_key"))
    admin = ("radosgw-admin", *configured())
    if USER not in json.loads(run(*admin, "user", "list")):
        run(*admin, "user", "create", "--uid", USER, "--display-name", "Slipway")
    record: dict[str, Any] = json.loads(run(*admin, "metadata", "get", f"user:{USER}"))
    wanted = [{"user": USER, "access_key": access_key, "secret_key": secret_key}]
    known = [{name: key[name] for name in wanted[0]} for key in record["data"]["keys"]]
    if known != wanted:
        record["data"]["keys"] = wanted
        run(*admin, "metadata", "put", f"user:{USER}", text=json.dumps(record))


def configured() -> tuple[str, ...]:
    return "-c", str(CONFIGURATION)


def ceph(*arguments: str) -> str:
    return run("ceph", *configured(), "--connect-timeout", "60", *arguments)


def run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=START_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def start(program: str, *arguments: str) -> None:
    daemons[program] = subprocess.Popen([program, "-f", *configured(), *arguments], stdin=subprocess.DEVNULL)


def stop() -> None:
    """The gateway first, the monitor last, each given time to write down what it has."""
    for program in ("radosgw", "ceph-osd", "ceph-mon"):
        daemon = daemons.get(program)
        if daemon is None:
            continue
        daemon.terminate()
        try:
            daemon.wait(STOP_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def ended() -> list[str]:
    return [name for name, daemon in daemons.items() if daemon.poll() is not None]


def answers() -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def wait(what: str, is_ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not is_ready():
        if ended() or time.monotonic() > deadline:
            raise RuntimeError(f"{what} is not ready; ended by themselves: {ended()}")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
