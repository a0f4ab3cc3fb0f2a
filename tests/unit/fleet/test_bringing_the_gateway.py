"""How the gateway is brought to the fleet's state, and who waits for it: with a stand-in for Envoy's own interface."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.keys import bring
from pipeline.errors import SpecError, TransientError
from pipeline.fleet import gateway as part
from pipeline.fleet.doors import keys
from pipeline.fleet.envoy_admin import STATS
from pipeline.fleet.gateway import Gateway
from pipeline.fleet.state import Replica, models_path
from pipeline.stack.layout import Layout
from tests import small_fleet

REPLICA = Replica(id="r-0", port=20_000)
CLIENT = keys.Key(name="shop", created_at=0, secrets=(keys.Secret(digest="1" * 64, created_at=0),))


class Envoy:
    """Reads its files when it is asked which ones it has, each as often as it is written: as soon as `takes`, unless it
    `refuses` them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.takes, self.refuses = True, False
        self.held: dict[str, str] = {}
        self.read: dict[str, tuple[int, int]] = {}
        self.refusals = 0
        self.server: ThreadingHTTPServer | None = None

    def stats(self) -> list[dict[str, Any]]:
        found = []
        for kind, prefix in STATS.items():
            if self.read.get(kind) != self.written(kind) and self.takes:
                self.read[kind] = self.written(kind)
                if self.refuses:
                    self.refusals += 1
                else:
                    self.held[kind] = json.loads((self.folder / f"{kind}.json").read_bytes())["version_info"]
            found += [
                {"name": f"{prefix}.version_text", "value": self.held[kind]},
                {"name": f"{prefix}.update_rejected", "value": self.refusals},
            ]
        return found

    def written(self, kind: str) -> tuple[int, int]:
        """Another one after each writing."""
        status = (self.folder / f"{kind}.json").stat()
        return status.st_ino, status.st_mtime_ns

    def begin(self, port: int) -> None:
        """Reads its files, as at a start."""
        envoy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps({"stats": envoy.stats(), "uptime_current_epoch": "1s"}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words: Any) -> None:
                pass

        self.takes, self.refuses = True, False
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,)).start()
        self.stats()

    def end(self) -> None:
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    """Its files are written; a client has a key since."""
    monkeypatch.setattr(part, "CONFIRM_TIMEOUT_S", 2.0)
    layout = Layout(tmp_path)
    layout.create()
    layout.choose_ports()
    layout.ensure_credentials()
    gateway = Gateway(layout)
    gateway.write({})
    return gateway


@pytest.fixture
def envoy(gateway: Gateway) -> Iterator[Envoy]:
    envoy = Envoy(gateway.xds_path)
    yield envoy
    envoy.end()


def port_of(gateway: Gateway) -> int:
    return gateway.layout.ports().gateway_admin


def text(gateway: Gateway, kind: str = "rds") -> str:
    return (gateway.xds_path / f"{kind}.json").read_text()


def give_a_key(gateway: Gateway) -> None:
    keys.write_ring(gateway.layout, keys.KeyRing(keys=(CLIENT,)))


def test_a_gateway_that_answers_is_brought_to_the_state(gateway: Gateway, envoy: Envoy) -> None:
    """Its word that it has taken the file is waited for."""
    envoy.begin(port_of(gateway))
    before = dict(envoy.held)
    give_a_key(gateway)
    gateway.apply()
    assert envoy.held["rds"] == json.loads(text(gateway))["version_info"] != before["rds"]


@pytest.mark.parametrize("is_down", [True, False])
def test_nobody_waits_for_a_gateway_that_somebody_else_waits_for(gateway: Gateway, envoy: Envoy, is_down: bool) -> None:
    """Whether it is away or does not take what it is given: others have their turns meanwhile."""
    envoy.begin(port_of(gateway))
    if is_down:
        envoy.end()
    envoy.takes = False
    give_a_key(gateway)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bring, gateway.layout)
        turns = 0
        while not waiting.done():
            with gateway.files.lock():
                turns += 1
            time.sleep(0.01)
        with pytest.raises(TransientError, match="has not taken its configuration after 2 s"):
            waiting.result()
    assert turns > 2


def test_a_damaged_file_holds_up_neither_keys_nor_other_models(gateway: Gateway, envoy: Envoy) -> None:
    """Its own model goes on as the gateway was brought to it last."""
    with gateway.files.lock():
        for name in ("hurt", "well"):
            gateway.files.write(small_fleet.serving(REPLICA).model_copy(update={"name": name}))
    envoy.begin(port_of(gateway))
    gateway.apply()
    (models_path(gateway.layout.home_path) / "hurt.json").write_text('{"name": "hurt"')
    give_a_key(gateway)
    gateway.files.update("well", lambda model: model.changed(weights={}))
    gateway.apply()
    assert CLIENT.secrets[0].digest in text(gateway)
    assert "hurt.g1" in text(gateway)
    assert "well.g1" not in text(gateway)
    assert envoy.held["rds"] == json.loads(text(gateway))["version_info"]


def test_a_damaged_file_that_the_gateway_never_knew_is_named(gateway: Gateway, envoy: Envoy) -> None:
    """There is nothing to go on with."""
    models_path(gateway.layout.home_path).mkdir(parents=True)
    (models_path(gateway.layout.home_path) / "hurt.json").write_text("{")
    envoy.begin(port_of(gateway))
    with pytest.raises(SpecError, match=r"the change is kept, .*hurt\.json is damaged"):
        bring(gateway.layout)


def test_a_gateway_that_was_away_begins_with_what_should_be(gateway: Gateway, envoy: Envoy) -> None:
    """Its files say so, though nobody could tell it."""
    give_a_key(gateway)
    with pytest.raises(TransientError, match="it does not answer"):
        gateway.apply()
    assert CLIENT.secrets[0].digest in text(gateway)
    envoy.begin(port_of(gateway))
    gateway.apply()


def test_a_gateway_that_comes_back_in_time_is_brought_to_the_state(
    gateway: Gateway, envoy: Envoy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does whose Envoy is replaced or has died."""
    monkeypatch.setattr(part, "CONFIRM_TIMEOUT_S", 30.0)
    give_a_key(gateway)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gateway.apply)
        with gateway.files.lock():
            pass  # somebody else has a turn
        envoy.begin(port_of(gateway))
        waiting.result(30)
    assert envoy.held["rds"] == json.loads(text(gateway))["version_info"]
    assert CLIENT.secrets[0].digest in text(gateway)


def test_what_the_gateway_refuses_is_told_at_once_and_does_not_stay(
    gateway: Gateway, envoy: Envoy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would begin without routes when it is started again."""
    monkeypatch.setattr(part, "CONFIRM_TIMEOUT_S", 60.0)
    envoy.begin(port_of(gateway))
    before = text(gateway)
    give_a_key(gateway)
    envoy.refuses = True
    began = time.monotonic()
    with pytest.raises(TransientError, match="refuses configuration"):
        gateway.apply()
    assert time.monotonic() - began < part.CONFIRM_TIMEOUT_S / 2
    assert text(gateway) == before


def test_what_a_slow_gateway_refuses_in_the_end_does_not_stay_either(
    gateway: Gateway, envoy: Envoy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was written for the second time by then."""
    monkeypatch.setattr(part, "CONFIRM_TIMEOUT_S", 30.0)
    envoy.begin(port_of(gateway))
    before = text(gateway)
    give_a_key(gateway)
    envoy.takes, envoy.refuses = False, True
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gateway.apply)
        while text(gateway) == before:
            time.sleep(0.01)
        first = envoy.written("rds")
        while envoy.written("rds") == first:
            time.sleep(0.01)
        envoy.takes = True
        with pytest.raises(TransientError, match="refuses configuration"):
            waiting.result()
    assert text(gateway) == before


def test_a_file_that_the_gateway_has_not_read_is_written_again(gateway: Gateway, envoy: Envoy) -> None:
    """Who wrote it may have been killed before the gateway looked."""
    envoy.begin(port_of(gateway))
    envoy.takes = False
    give_a_key(gateway)
    gateway.write({})
    written = envoy.written("rds")
    envoy.takes = True
    envoy.read["rds"] = envoy.written("rds")
    gateway.apply()
    assert envoy.written("rds") != written
