"""A real S3 server for tests: Ceph's monitor, one object store daemon on a file, and the RADOS gateway.

Everything lies in one temporary folder and on free ports of the loopback interface. The daemons are stopped by pid.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

ACCESS_KEY = "slipway-tests"
SECRET_KEY = "only-for-tests-on-loopback"
START_S = 120.0
CAPACITY_BYTES = 4 << 30


class Radosgw:
    """The three daemons; the gateway can be stopped, started and killed while a test runs."""

    def __init__(self, folder: Path, *, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self.folder = folder
        self.capacity_bytes = capacity_bytes
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self._configure()
        self._start_monitor()
        self._start_osd()
        self._ceph("auth", "get-or-create", "client.rgw", "mon", "allow rw", "osd", "allow rwx", keyring="rgw.keyring")
        user = ("--uid=slipway", "--display-name=slipway", f"--access-key={ACCESS_KEY}", f"--secret={SECRET_KEY}")
        self._run("radosgw-admin", *self._conf, "user", "create", *user)
        self.start_gateway()

    def start_gateway(self) -> None:
        self._spawn("radosgw", *self._conf, "-n", "client.rgw", "-k", self._path("rgw.keyring"))
        self._wait("the gateway", self._answers)

    def stop_gateway(self) -> None:
        """At once, as a power cut would."""
        self._kill("radosgw")

    def stop(self) -> None:
        for name in ("radosgw", "ceph-osd", "ceph-mon"):
            if name in self.daemons:
                self._kill(name)

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        )

    def make_bucket(self) -> str:
        """A new, empty bucket without versions."""
        name = f"slipway-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name

    @property
    def _conf(self) -> tuple[str, str]:
        return "-c", self._path("ceph.conf")

    def _path(self, name: str) -> str:
        return str(self.folder / name)

    def _configure(self) -> None:
        self.fsid, self.monitor = str(uuid.uuid4()), f"v2:127.0.0.1:{free_port()}"
        # cephx stays on: without it radosgw never comes up.
        settings = {
            "fsid": self.fsid,
            "mon host": f"[{self.monitor}]",
            "public addr": "127.0.0.1",
            "keyring": self._path("keyring"),
            "run dir": self._path("run"),
            "admin socket": self._path("run/$name.asok"),
            "log file": self._path("$name.log"),
            "crash dir": self._path("crash"),
            "mon data": self._path("mon"),
            "osd data": self._path("osd"),
            "bluestore block size": self.capacity_bytes,
            "osd crush chooseleaf type": 0,
            "osd pool default size": 1,
            "osd pool default min size": 1,
            "osd pool default pg num": 4,
            "osd pool default pg autoscale mode": "off",
            "mon allow pool size one": "true",
            "osd memory target": 1 << 30,
            "rgw frontends": f"beast endpoint=127.0.0.1:{self.port}",
        }
        for name in ("run", "mon", "osd", "crash"):
            (self.folder / name).mkdir()
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self.folder / "ceph.conf").write_text(f"[global]\n{lines}")

    def _start_monitor(self) -> None:
        keyring, monmap = self._path("keyring"), self._path("monmap")
        everything = [part for who in ("mon", "osd", "mgr", "mds") for part in ("--cap", who, "allow *")]
        self._run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        self._run("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *everything)
        self._run("monmaptool", "--create", "--addv", "a", f"[{self.monitor}]", "--fsid", self.fsid, monmap)
        self._run("ceph-mon", *self._conf, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._spawn("ceph-mon", *self._conf, "-i", "a")
        self._wait("the monitor", lambda: self._ceph("quorum_status") != "")

    def _start_osd(self) -> None:
        osd = str(uuid.uuid4())
        number = self._ceph("osd", "new", osd).strip()
        self._ceph(
            "auth",
            *("get-or-create", f"osd.{number}", "mon", "allow profile osd", "osd", "allow *"),
            keyring="osd/keyring",
        )
        self._run("ceph-osd", *self._conf, "-i", number, "--mkfs", "--osd-uuid", osd, "-k", self._path("osd/keyring"))
        self._spawn("ceph-osd", *self._conf, "-i", number, "-k", self._path("osd/keyring"))
        self._wait(
            "the object store daemon", lambda: json.loads(self._ceph("osd", "stat", "-f", "json"))["num_up_osds"]
        )

    def _osds_up(self) -> int:
        return int(json.loads(self._ceph("osd", "stat", "-f", "json"))["num_up_osds"])

    def _ceph(self, *arguments: str, keyring: str = "") -> str:
        output = ("-o", self._path(keyring)) if keyring else ()
        return self._run("ceph", *self._conf, "--connect-timeout", "60", *arguments, *output)

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_S)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def _spawn(self, program: str, *arguments: str) -> None:
        with (self.folder / f"{program}.out").open("ab") as log:
            self.daemons[program] = subprocess.Popen(
                [program, "-f", *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def _kill(self, program: str) -> None:
        daemon = self.daemons.pop(program)
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()

    def _answers(self) -> bool:
        try:
            self.client().list_buckets()
        except Exception:  # noqa: BLE001  whatever it is, the gateway does not answer yet
            return False
        return True

    def _wait(self, what: str, is_ready: Callable[[], object]) -> None:
        deadline = time.monotonic() + START_S
        while not is_ready():
            dead = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > deadline:
                logs = "".join(path.read_text(errors="replace")[-1500:] for path in self.folder.glob("*.out"))
                raise RuntimeError(f"{what} of the test's S3 server is not ready; ended: {dead}; {logs}")
            time.sleep(0.2)


@contextmanager
def running_radosgw(folder: Path, *, capacity_bytes: int = CAPACITY_BYTES) -> Iterator[Radosgw]:
    """A server whose data is gone afterwards. Its file is sparse: capacity costs nothing until it is used."""
    server = Radosgw(folder, capacity_bytes=capacity_bytes)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def credentials(**changed: str) -> dict[str, str]:
    """The environment of a process that uses the server."""
    return {**os.environ, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, **changed}
