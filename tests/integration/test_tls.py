"""TLS at a real Envoy: who may speak plainly, and a certificate that is replaced while streams flow."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from certificates import NAME, Pair
from fleet_rig import MODEL, Rig

from pipeline.errors import SpecError
from pipeline.fleet.doors import keeper, tls
from pipeline.stack.layout import write_json

pytestmark = pytest.mark.integration

OUTSIDE, INSIDE = "127.0.0.1", "127.0.0.2"
"""Two addresses of the gateway, as a container in two networks has: one for clients, one in the fleet's network."""


@pytest.fixture(scope="module")
def first() -> Pair:
    return Pair.make()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, first: Pair) -> Iterator[Rig]:
    """A gateway with two addresses and TLS, one replica, and the program that looks after the certificate."""
    rig = Rig(tmp_path_factory.mktemp("tls"))
    rig.layout.create()
    hosts = {"gateway": INSIDE, "gateway_admin": INSIDE}
    ports = rig.layout.choose_ports().model_copy(update={"listen": "0.0.0.0", "hosts": hosts})
    write_json(rig.layout.stack_path, ports)
    tls.choose(rig.layout, first.put(folder(rig)))
    rig.up()
    rig.supervisor.put(keeper.program(rig.layout))
    rig.registry.configure(replicas=1, step_s=1.0, min_requests=5)
    rig.roll_out("1")
    yield rig
    rig.supervisor.stop()


def folder(rig: Rig) -> Path:
    return rig.home_path / "certificate"


def shown(rig: Rig) -> bytes:
    """The certificate that a new connection sees."""
    return ssl.get_server_certificate((OUTSIDE, rig.layout.ports().gateway), timeout=10).encode()


def client(rig: Rig, pair: Pair) -> httpx.Client:
    """Checks the certificate and, by the name in it, the server."""
    context = ssl.create_default_context(cadata=pair.cert.decode())
    return httpx.Client(
        base_url=f"https://{OUTSIDE}:{rig.layout.ports().gateway}",
        headers={"authorization": f"Bearer {rig.key}", "host": NAME},
        verify=context,
        timeout=30,
        trust_env=False,
    )


def ask(made: httpx.Client) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    return made.post("/v1/chat/completions", json=body, extensions={"sni_hostname": NAME})


def test_clients_speak_tls_and_are_answered(rig: Rig, first: Pair) -> None:
    """By the certificate that was given; a client without the key is still refused."""
    with client(rig, first) as made:
        assert ask(made).headers["x-slipway-version"] == "1"
        made.headers["authorization"] = "Bearer wrong"
        assert ask(made).status_code == 401


def test_plain_http_is_for_the_stacks_own_programs_alone(rig: Rig) -> None:
    """The rollout above came in by the fleet's address; from outside nothing plain is answered."""
    assert rig.ask().status_code == 200
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{OUTSIDE}:{rig.layout.ports().gateway}/healthz", trust_env=False)


def test_the_url_for_people_says_https(rig: Rig) -> None:
    """Programs of the stack go on with theirs."""
    ports = rig.layout.ports()
    assert ports.public_url("gateway").startswith("https://")
    assert ports.url("gateway").startswith(f"http://{INSIDE}:")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_of_tls_are_refused(rig: Rig) -> None:
    """TLS 1.2 is the least."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    url = f"https://{OUTSIDE}:{rig.layout.ports().gateway}/healthz"
    with pytest.raises(httpx.TransportError):
        httpx.get(url, verify=context, trust_env=False)


def test_the_private_key_is_shown_nowhere(rig: Rig, first: Pair) -> None:
    """Envoy's own interface leaves it out, and the file is its owner's."""
    admin = f"{rig.layout.ports().url('gateway_admin')}/config_dump"
    secret = first.key.decode().splitlines()[1]
    assert secret not in httpx.get(admin, trust_env=False).text
    path = tls.secret_path(rig.layout)
    assert secret in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_a_new_certificate_breaks_no_stream(rig: Rig, first: Pair) -> None:
    """New connections see it within seconds; a pair that does not fit changes nothing."""
    rig.behave("1", chunks=30, chunk_s=0.2)
    second = Pair.make()
    body = {"model": MODEL, "stream": True}
    with (
        client(rig, first) as made,
        made.stream("POST", "/v1/chat/completions", json=body, extensions={"sni_hostname": NAME}) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line)
        assert next(lines)
        Pair(cert=first.cert, key=second.key).put(folder(rig))
        seen = rig.layout.log_path(keeper.PROGRAM)
        assert rig.gateway.wait(lambda: "is not that of the certificate" in seen.read_text(), 30)
        assert shown(rig) == first.cert
        second.put(folder(rig))
        assert rig.gateway.wait(lambda: shown(rig) == second.cert, 30)
        *_, last = lines
    assert last == "data: [DONE]"
    with client(rig, second) as made:
        assert ask(made).status_code == 200
    with client(rig, first) as made, pytest.raises(httpx.ConnectError):
        ask(made)


def test_a_certificate_that_cannot_be_used_is_refused_when_it_is_chosen(rig: Rig, tmp_path: Path) -> None:
    """A key of another, one that is over, a file that is none; what was chosen before stays."""
    before = tls.certificate_of(rig.layout)
    good = Pair.make()
    over = Pair.make(days=-1)
    for pair, problem in (
        (Pair(cert=good.cert, key=over.key), "is not that of"),
        (over, "not now"),
        (Pair(cert=b"nothing", key=good.key), "two PEM files"),
    ):
        with pytest.raises(SpecError, match=problem):
            tls.choose(rig.layout, pair.put(tmp_path / "pair"))
    assert tls.certificate_of(rig.layout) == before


def test_on_one_machine_its_own_programs_need_no_certificate(tmp_path: Path, first: Pair) -> None:
    """Both come in by the same port; and without a certificate it speaks no TLS again."""
    rig = Rig(tmp_path / "home")
    rig.layout.create()
    rig.layout.choose_ports()
    tls.choose(rig.layout, first.put(tmp_path / "pair"))
    rig.up()
    try:
        assert shown(rig) == first.cert
        assert httpx.get(f"{rig.gateway.url}/healthz", trust_env=False).status_code == 200
        tls.choose(rig.layout, None)
        rig.gateway.write_bootstrap()

        def is_plain() -> bool:
            try:
                shown(rig)
            except OSError:
                return True
            return False

        assert rig.gateway.wait(is_plain, 30)
        assert rig.layout.ports().public_url("gateway").startswith("http://")
        assert httpx.get(f"{rig.gateway.url}/healthz", trust_env=False).status_code == 200
    finally:
        rig.supervisor.stop()
