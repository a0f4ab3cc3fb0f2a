"""Ways in that must not be any, tried against a real Envoy; and keys, as their clients see them."""

import hashlib
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fleet_rig import MODEL, Rig
from typer.testing import CliRunner, Result

from pipeline.commands.app import app
from pipeline.commands.keys import bring, change
from pipeline.errors import SpecError
from pipeline.fleet import epochs
from pipeline.fleet.doors import budgets, keeper, keys, replica_door
from pipeline.fleet.doors.keys import Allowed, KeyRing
from pipeline.fleet.gateway import Gateway, probe_key
from pipeline.stack.processes import owned

pytestmark = pytest.mark.integration

CHAT = "/v1/chat/completions"
QUESTION = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]})
HEADERS_TIMEOUT_S, REQUEST_TIMEOUT_S = 1, 2


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A gateway with one replica, which repeats what it was asked; its time-outs are short."""
    rig = Rig(tmp_path_factory.mktemp("doors"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.fleet.envoy_config.HEADERS_TIMEOUT_S", HEADERS_TIMEOUT_S)
        patched.setattr("pipeline.fleet.envoy_config.REQUEST_TIMEOUT_S", REQUEST_TIMEOUT_S)
        rig.up()
    rig.registry.configure(replicas=1, step_s=1.0, min_requests=5)
    rig.behave("1", echo=True)
    rig.roll_out("1")
    yield rig
    rig.supervisor.stop()


def make_key(rig: Rig, name: str, **allowed: Any) -> str:
    """As `slipway keys create`."""
    return changed(rig, name, lambda ring: keys.create(ring, name, Allowed(**allowed), time.time()))


def rotate_key(rig: Rig, name: str, grace_s: float) -> str:
    """As `slipway keys rotate`."""
    return changed(rig, name, lambda ring: keys.rotate(ring, name, grace_s, time.time()))


def revoke_key(rig: Rig, name: str) -> None:
    """As `slipway keys revoke`."""
    changed(rig, name, lambda ring: (keys.revoke(ring, name, time.time()), ""))


def changed(rig: Rig, name: str, how: Callable[[KeyRing], tuple[KeyRing, str]]) -> str:
    made = change(rig.layout, "key", name, how)
    bring(rig.layout)
    return made


def speak(rig: Rig, said: bytes, timeout_s: float = 10.0) -> bytes:
    """What the gateway answers to these very bytes, until it falls silent or hangs up."""
    heard = b""
    with socket.create_connection(("127.0.0.1", rig.layout.ports().gateway), timeout=timeout_s) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.sendall(said)
            while not _is_whole(heard):
                piece = connection.recv(65536)
                if not piece:
                    break
                heard += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
    return heard


def _is_whole(heard: bytes) -> bool:
    head, found, body = heard.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return bool(found) and len(body) >= int(line.split(b":")[1])
    return heard.endswith(b"\r\n0\r\n\r\n")


def refused(heard: bytes) -> bool:
    """Whether it is no answer of a replica: 4xx, a 5xx for what HTTP/1.1 does not know, or none at all."""
    status = heard.split(b" ", 2)[1] if heard else b"400"
    return (status.startswith(b"4") or status in (b"501", b"505")) and b"x-slipway-version" not in heard


def request(line: str, *headers: str, body: str = QUESTION) -> str:
    """A request with its true length; KEY stands for a key that counts."""
    known = ("host: gateway", f"content-length: {len(body)}", *headers)
    return "\r\n".join([line, *known, "", body])


POST = f"POST {CHAT} HTTP/1.1"
KEY = "authorization: Bearer KEY"

WITHOUT_A_KEY = {
    "no key": request(POST),
    "an empty header": request(POST, "authorization:"),
    "a scheme alone": request(POST, "authorization: Bearer"),
    "a scheme and spaces": request(POST, "authorization: Bearer    "),
    "another scheme": request(POST, "authorization: Basic KEY"),
    "no scheme": request(POST, "authorization: KEY"),
    "another scheme before": request(POST, "authorization: Basic x Bearer KEY"),
    "a wrong key": request(POST, "authorization: Bearer sk-slipway-wrong"),
    "a key cut short": request(POST, "authorization: Bearer CUT"),
    "a key and more": request(POST, f"{KEY}x"),
    "a key in capitals": request(POST, "authorization: Bearer UPPER"),
    "a key in quotes": request(POST, 'authorization: Bearer "KEY"'),
    "two keys in one header": request(POST, f"{KEY}, Bearer KEY"),
    "two keys, a wrong one first": request(POST, "authorization: Bearer wrong", KEY),
    "two keys, a wrong one last": request(POST, KEY, "authorization: Bearer wrong"),
    "the same key twice": request(POST, KEY, KEY),
    "a tab for a space": request(POST, "authorization: Bearer\tKEY"),
    "a nul in the key": request(POST, "authorization: Bearer KEY\0"),
    "the key's digest": request(POST, "authorization: Bearer DIGEST"),
    "the digest where the gateway keeps it": request(POST, "x-slipway-key: DIGEST"),
    "the digest beside a wrong key": request(POST, "x-slipway-key: DIGEST", "authorization: Bearer wrong"),
    "the key where the gateway keeps its digest": request(POST, "x-slipway-key: KEY"),
    "a client's name instead of a key": request(POST, "x-client-id: client"),
    "the key for a proxy": request(POST, "proxy-authorization: Bearer KEY"),
    "the key in a header of other gateways": request(POST, "x-api-key: KEY", "api-key: KEY"),
    "the key in the query": request(f"POST {CHAT}?key=KEY&authorization=Bearer%20KEY HTTP/1.1"),
    "the key in a cookie": request(POST, "cookie: authorization=Bearer KEY"),
    "the key in the address": request(f"POST http://user:KEY@gateway{CHAT} HTTP/1.1"),
    "a header name in other letters": request(POST, "ａuthorization: Bearer KEY"),
    "a space before the colon": request(POST, "authorization : Bearer KEY"),
    "an underscore": request(POST, "x_authorization: Bearer KEY"),
    "a key of a megabyte": request(POST, f"authorization: Bearer {'a' * 20000}"),
    "a revoked key": request(POST, "authorization: Bearer REVOKED"),
    "a key past its time": request(POST, "authorization: Bearer EXPIRED"),
    "the open path's name before": request("POST /healthz/..%2fv1/chat/completions HTTP/1.1"),
    "the list of models": request("GET /v1/models HTTP/1.1", body=""),
}


def filled(text: str, rig: Rig, **others: str) -> bytes:
    words = {
        "DIGEST": hashlib.sha256(rig.key.encode()).hexdigest(),
        "UPPER": rig.key.upper(),
        "CUT": rig.key[:-1],
        "KEY": rig.key,
        **others,
    }
    for word, value in words.items():
        text = text.replace(word, value)
    return text.encode()


@pytest.fixture(scope="module")
def gone(rig: Rig) -> dict[str, str]:
    """A key that was revoked, and one whose time of grace is over."""
    revoked, expired = make_key(rig, "revoked"), make_key(rig, "expired")
    revoke_key(rig, "revoked")
    rotate_key(rig, "expired", 0.0)
    return {"REVOKED": revoked, "EXPIRED": expired}


@pytest.mark.parametrize("said", WITHOUT_A_KEY.values(), ids=WITHOUT_A_KEY)
def test_without_a_key_nobody_gets_in(rig: Rig, gone: dict[str, str], said: str) -> None:
    """401 in OpenAI's form, or 400 for what is no HTTP; never an answer of a replica."""
    heard = speak(rig, filled(said, rig, **gone))
    status = heard.split(b" ", 2)[1:2]
    assert status in ([b"401"], [b"400"], [b"431"]), heard
    assert b"choices" not in heard
    assert b"x-slipway-version" not in heard
    if status == [b"401"]:
        assert b"invalid_api_key" in heard
        assert b"application/json" in heard


NOT_A_WAY = {
    "a path of the engine": ("POST /invocations HTTP/1.1", "404"),
    "the engine's tokens": ("POST /tokenize HTTP/1.1", "404"),
    "the engine's figures": ("GET /metrics HTTP/1.1", "404"),
    "the engine's health": ("GET /health HTTP/1.1", "404"),
    "the engine's documents": ("GET /openapi.json HTTP/1.1", "404"),
    "Envoy's own interface": ("GET /config_dump HTTP/1.1", "404"),
    "another path of OpenAI's": ("POST /v1/embeddings HTTP/1.1", "404"),
    "the root": ("GET / HTTP/1.1", "404"),
    "a path after the path": (f"POST {CHAT}/ HTTP/1.1", "404"),
    "parameters of a path": (f"POST {CHAT};x=1 HTTP/1.1", "404"),
    "parameters before the end": ("POST /v1;x/chat/completions HTTP/1.1", "404"),
    "dots": ("POST /v1/../invocations HTTP/1.1", "404"),
    "escaped dots": ("POST /v1/%2e%2e/invocations HTTP/1.1", "404"),
    "an escaped slash": ("POST /v1/..%2finvocations HTTP/1.1", "400"),
    "an escaped backslash": ("POST /v1/..%5cinvocations HTTP/1.1", "400"),
    "a backslash": ("POST /v1\\..\\invocations HTTP/1.1", "404"),
    "escaped twice": ("POST /v1/%252e%252e/invocations HTTP/1.1", "404"),
    "two slashes": ("POST //invocations HTTP/1.1", "404"),
    "capitals": ("POST /V1/CHAT/COMPLETIONS HTTP/1.1", "404"),
    "an escaped nul": (f"POST {CHAT}%00 HTTP/1.1", "40"),
    "a fragment": ("POST /invocations#/v1/chat/completions HTTP/1.1", "40"),
    "another host's address": ("POST http://127.0.0.1:9901/quitquitquit HTTP/1.1", "404"),
    "a file": ("POST file:///v1/chat/completions HTTP/1.1", "40"),
    "a tunnel": ("CONNECT 127.0.0.1:9901 HTTP/1.1", "40"),
    "an echo": (f"TRACE {CHAT} HTTP/1.1", "40"),
    "options of everything": ("OPTIONS * HTTP/1.1", "40"),
    "options": (f"OPTIONS {CHAT} HTTP/1.1", "404"),
    "another method": (f"PUT {CHAT} HTTP/1.1", "404"),
    "a method of one's own": (f"JUMP {CHAT} HTTP/1.1", "40"),
    "a read": (f"GET {CHAT} HTTP/1.1", "404"),
    "an old protocol": (f"POST {CHAT} HTTP/1.0", "426"),
    "a protocol to come": (f"POST {CHAT} HTTP/3.0", "426"),
}


@pytest.mark.parametrize(("line", "status"), NOT_A_WAY.values(), ids=NOT_A_WAY)
def test_no_other_path_or_method_leads_anywhere(rig: Rig, line: str, status: str) -> None:
    """Even with a key: nothing but the named paths reaches a replica."""
    heard = speak(rig, filled(request(line, KEY), rig))
    assert heard.split(b" ", 2)[1].decode().startswith(status), heard
    assert b"x-slipway-version" not in heard


HEAD = f"{POST}\r\nhost: g\r\n{KEY}\r\n"
CHUNKED = f"{len(QUESTION):x}\r\n{QUESTION}\r\n0\r\n\r\n"
SMUGGLING = {
    "two lengths": request(POST, KEY, "content-length: 5"),
    "length and chunks": f"{HEAD}content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n{CHUNKED}",
    "chunks and length": f"{HEAD}transfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n{CHUNKED}",
    "chunks, written oddly": f"{HEAD}transfer-encoding: xchunked\r\n\r\n{CHUNKED}",
    "chunks twice": f"{HEAD}transfer-encoding: chunked, chunked\r\n\r\n{CHUNKED}",
    "chunks and identity": f"{HEAD}transfer-encoding: chunked, identity\r\n\r\n{CHUNKED}",
    "a length below zero": f"{HEAD}content-length: -1\r\n\r\n{QUESTION}",
    "a length with a sign": f"{HEAD}content-length: +{len(QUESTION)}\r\n\r\n{QUESTION}",
    "a length too long for a number": f"{HEAD}content-length: {'9' * 30}\r\n\r\n{QUESTION}",
    "a chunk's length that is none": f"{HEAD}transfer-encoding: chunked\r\n\r\nzz\r\n{QUESTION}\r\n",
    "no host": f"{POST}\r\n{KEY}\r\ncontent-length: {len(QUESTION)}\r\n\r\n{QUESTION}",
    "a nul in a header": request(POST, KEY, "x-a: b\0"),
    "headers of a megabyte": request(POST, KEY, f"x-a: {'b' * 40000}"),
    "a thousand headers": request(POST, KEY, *(f"x-{number}: b" for number in range(1000))),
    "an underscore in a name": request(POST, KEY, "x_client_id: slipway-probe"),
    "no HTTP at all": "\x16\x03\x01\x02\x00\x01\x00",
}


@pytest.mark.parametrize("said", SMUGGLING.values(), ids=SMUGGLING)
def test_requests_that_two_servers_could_read_differently_are_refused(rig: Rig, said: str) -> None:
    """And the connection ends, so that nothing is left over to be read as a second request."""
    heard = speak(rig, filled(said, rig))
    assert refused(heard), heard


@pytest.mark.parametrize("between", ["\r", "\r\n ", " \t"], ids=["half a line break", "a folded line", "spaces"])
def test_a_header_hidden_in_another_one_stays_a_part_of_it(rig: Rig, between: str) -> None:
    """What the gateway sends on is one line, however the client broke it."""
    heard = speak(rig, filled(request(POST, KEY, f"x-a: b{between}x-client-id: slipway-probe"), rig))
    content = json.loads(heard[heard.index(b'{"model"') : heard.rindex(b"}") + 1])["choices"][0]["message"]["content"]
    headers = json.loads(content)["headers"]
    assert [value for name, value in headers if name == "x-client-id"] == ["client"]
    (hidden,) = [value for name, value in headers if name == "x-a"]
    assert "\r" not in hidden
    assert "\n" not in hidden


def test_an_upgrade_to_http2_or_a_socket_is_not_made(rig: Rig) -> None:
    """What the client would then say past the gateway's filters never begins."""
    for headers in (("upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__"), ("upgrade: websocket",)):
        heard = speak(rig, filled(request(POST, KEY, "connection: upgrade", *headers), rig))
        assert heard
        assert heard.split(b" ", 2)[1] != b"101"


def seen(answer: httpx.Response) -> dict[str, list[str]]:
    """The request's headers as the replica saw them."""
    assert answer.status_code == 200, answer.text
    found: dict[str, list[str]] = {}
    for name, value in json.loads(answer.json()["choices"][0]["message"]["content"])["headers"]:
        found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-client-id", "slipway-probe"),
        ("X-Client-ID", "slipway-probe"),
        ("x-slipway-key", "0" * 64),
        ("x-slipway-version", "99"),
        ("x-slipway-generation", "99"),
        ("x-slipway-model", "other"),
        ("x-forwarded-for", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1"),
        ("x-real-ip", "10.0.0.1"),
        ("x-forwarded-host", "elsewhere"),
        ("x-forwarded-client-cert", "Subject=admin"),
        ("x-original-url", "/invocations"),
        ("x-rewrite-url", "/invocations"),
        ("x-http-method-override", "DELETE"),
        ("x-envoy-upstream-rq-timeout-ms", "1"),
        ("x-envoy-expected-rq-timeout-ms", "1"),
        ("x-envoy-max-retries", "99"),
        ("x-envoy-retry-on", "5xx"),
        ("x-envoy-internal", "true"),
        ("x-envoy-original-path", "/invocations"),
        ("x-envoy-original-dst-host", "127.0.0.1:9901"),
        ("x-envoy-external-address", "10.0.0.1"),
        ("x-envoy-force-trace", "true"),
        ("x-envoy-ip-tags", "admin"),
        ("x-envoy-decorator-operation", "admin"),
    ],
)
def test_what_the_gateway_alone_may_say_does_not_come_from_a_client(rig: Rig, name: str, value: str) -> None:
    """The replica sees the client that the key belongs to, and nothing of what the header claimed."""
    found = seen(rig.ask(**{name: value}))
    assert found["x-client-id"] == ["client"]
    assert value not in [said for kind in found if kind == name.lower() for said in found[kind]]
    assert "x-slipway-key" not in found


def test_neither_the_key_nor_its_digest_reaches_a_replica_or_envoys_configuration(rig: Rig) -> None:
    """Envoy holds digests, and its own interface can show nothing else."""
    answer = rig.ask()
    digest = hashlib.sha256(rig.key.encode()).hexdigest()
    assert rig.key not in answer.text
    assert digest not in answer.text
    admin = f"{rig.layout.ports().url('gateway_admin')}/config_dump"
    dump = httpx.get(admin, trust_env=False, params={"include_eds": ""}).text
    configuration = dump + "".join(path.read_text() for path in rig.gateway.xds_path.rglob("*.json"))
    assert digest in configuration
    for key in (rig.key, probe_key(rig.layout)):
        assert key not in configuration


def test_the_scheme_may_be_written_in_any_letters(rig: Rig) -> None:
    """RFC 9110, 11.1."""
    for scheme in ("Bearer", "bearer", "BEARER"):
        answer = httpx.post(
            f"{rig.gateway.url}{CHAT}",
            content=QUESTION,
            headers={"authorization": f"{scheme} {rig.key}"},
            trust_env=False,
        )
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("said", "timeout_s"),
    [
        ("POST /v1/chat/comp", HEADERS_TIMEOUT_S),
        (HEAD, HEADERS_TIMEOUT_S),
        (f'{HEAD}content-length: 500\r\n\r\n{{"model":', REQUEST_TIMEOUT_S),
        (f"{HEAD}transfer-encoding: chunked\r\n\r\n5\r\n{{", REQUEST_TIMEOUT_S),
    ],
    ids=["half a line", "no end of headers", "no end of the body", "no end of a chunk"],
)
def test_a_client_that_never_ends_its_request_is_cut_off(rig: Rig, said: str, timeout_s: float) -> None:
    """408, as soon as its time is up."""
    began = time.monotonic()
    heard = speak(rig, filled(said, rig), timeout_s=timeout_s + 20)
    assert heard == b"" or heard.split(b" ", 2)[1] == b"408"
    assert timeout_s * 0.9 <= time.monotonic() - began < timeout_s + 10


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused(rig: Rig, chunked: bool) -> None:
    """With its length given, or in pieces without one."""
    pieces = [b"x" * (1 << 16)] * 20
    content = iter(pieces) if chunked else b"".join(pieces)
    headers = {"authorization": f"Bearer {rig.key}"}
    answer = httpx.post(f"{rig.gateway.url}{CHAT}", content=content, headers=headers, trust_env=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("body", ["[" * 200_000, '{"a":' * 100_000, '{"model": {"a": 1}}', '{"model": 7}', '"tiny"'])
def test_a_body_that_is_no_question_leaves_the_gateway_standing(rig: Rig, body: str) -> None:
    """Neither depth nor another type gets past the route."""
    headers = {"authorization": f"Bearer {rig.key}"}
    answer = httpx.post(f"{rig.gateway.url}{CHAT}", content=body, headers=headers, trust_env=False)
    assert answer.status_code in (400, 404)
    assert rig.ask().status_code == 200


def test_everything_listens_on_loopback_alone(rig: Rig) -> None:
    """Replicas, Envoy's own interface and whatever else the home runs."""
    listening = [
        connection.laddr.ip
        for process in owned(rig.layout)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 3
    assert set(listening) == {"127.0.0.1"}


def test_a_replica_answers_nobody_but_the_gateway(rig: Rig) -> None:
    """Whoever reaches its port gets nothing, with a client's key or without; the gateway hands out no secret."""
    replica = rig.state().deployments[0].replicas[0]
    for headers in ({}, {"authorization": f"Bearer {rig.key}"}, {"x-slipway-door": rig.key}):
        with httpx.Client(base_url=f"http://{replica.address}", headers=headers, trust_env=False) as direct:
            for path in (CHAT, "/v1/completions", "/invocations", "/tokenize"):
                assert direct.post(path, content=QUESTION).status_code == 403
            assert direct.get("/health").status_code == 200
    answer = rig.ask(**{"x-slipway-door": "mine"})
    secret = replica_door.secret(rig.layout)
    assert seen(answer)["x-slipway-door"] == [secret]
    assert secret not in str(answer.headers)


# --- keys --------------------------------------------------------------------------------------------------------


def test_a_new_key_opens_and_a_revoked_one_does_not_even_after_a_restart(rig: Rig) -> None:
    """Within a second; the replica is told the client's name."""
    key = make_key(rig, "checkout")
    assert seen(rig.ask(key=key))["x-client-id"] == ["checkout"]
    revoke_key(rig, "checkout")
    assert rig.ask(key=key).status_code == 401
    before = epochs.read_standing(rig.gateway.folder).current
    assert before is not None
    psutil.Process(before.process.pid).kill()

    def answers() -> bool:
        now = epochs.read_standing(rig.gateway.folder).current
        return bool(now and now.process.pid != before.process.pid) and (rig.gateway.healthy() or {}) != {}

    assert rig.gateway.wait(answers, 60)
    assert rig.ask(key=key).status_code == 401
    assert rig.gateway.wait(lambda: rig.ask().status_code == 200, 30)


def test_a_rotation_under_load_turns_nobody_away(rig: Rig) -> None:
    """The key before counts until its time is over; the client changes when it likes."""
    held = make_key(rig, "rotated")
    failed = []
    with rig.load(clients=2) as load:
        for _ in range(3):
            fresh = rotate_key(rig, "rotated", 60.0)
            failed += [key for key in (held, fresh) * 3 if rig.ask(key=key).status_code != 200]
            held = fresh
    assert load.total > 0
    assert failed == []
    assert load.failures == []


def test_the_time_of_grace_ends_by_itself(rig: Rig) -> None:
    """The program `doors` sees to it."""
    first = make_key(rig, "graced")
    second = rotate_key(rig, "graced", 2.0)
    assert rig.ask(key=first).status_code == 200
    keeper_runs(rig)
    assert rig.gateway.wait(lambda: rig.ask(key=first).status_code == 401, 30)
    assert rig.ask(key=second).status_code == 200


def test_a_limit_of_requests_holds_for_one_client_alone(rig: Rig) -> None:
    """429 in OpenAI's form, with the time to wait; the others notice nothing."""
    key = make_key(rig, "limited", rate=1, burst=3)
    answers = [rig.ask(key=key) for _ in range(10)]
    codes = [answer.status_code for answer in answers]
    assert codes[:3] == [200, 200, 200]
    assert 429 in codes
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(refused.headers["retry-after"]) >= 1
    assert rig.ask().status_code == 200
    assert rig.gateway.wait(lambda: rig.ask(key=key).status_code == 200, 10)


def test_a_rate_that_is_no_whole_number_is_no_slower_than_it_says(rig: Rig) -> None:
    """20.3 a second are 203 each 10 s to Envoy, which lets them in as time goes by, not each 10 s."""
    key = make_key(rig, "uneven", rate=20.3, burst=1)
    began, taken = time.monotonic(), 0
    while time.monotonic() - began < 2:
        taken += rig.ask(key=key).status_code == 200
    assert taken > 10


@contextmanager
def canary_without_traffic(rig: Rig) -> Iterator[None]:
    """Version 2 on trial, before its first step."""
    rig.registry.set_alias(MODEL, "champion", "2")
    request_id = f"choose-{time.monotonic_ns()}"
    generation = rig.phase("plan", request_id=request_id).generation
    rig.phase("start_canary", request_id=request_id, generation=generation)
    try:
        yield
    finally:
        rig.phase("roll_back", request_id=request_id, generation=generation)
        rig.phase("retire", request_id=request_id, generation=generation)


def test_a_client_that_may_choose_chooses(rig: Rig) -> None:
    """`never` is honoured from it alone; nobody else's header counts."""
    key = make_key(rig, "tester", may_choose=True)
    found = Gateway(rig.layout).clients()
    assert {client.name for client in found if client.may_choose} == {"tester", "slipway-probe"}
    with canary_without_traffic(rig):
        assert rig.ask(key=key, **{"x-slipway-canary": "always"}).headers["x-slipway-version"] == "2"
        assert rig.ask(**{"x-slipway-canary": "always"}).headers["x-slipway-version"] == "1"


def test_chat_asks_the_canary_with_a_key_that_may_choose(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the help says; where another version would answer, nothing is asked or shown, and the way to a key is."""
    monkeypatch.setenv("SLIPWAY_HOME", str(rig.home_path))

    def say(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    def chat(*arguments: str) -> Result:
        return say("chat", MODEL, "--message", "hi", "--canary", *arguments)

    chooser, other = tmp_path / "chooser.key", tmp_path / "other.key"
    chooser.write_text(say("keys", "create", "chooser", "--may-choose").stdout)
    other.write_text(say("keys", "create", "other").stdout)
    assert "slipway keys create tester --may-choose > tester.key" in say("chat", "--help").output
    with canary_without_traffic(rig):
        done = chat("--key-file", str(chooser), "--max-tokens", "3")
        assert done.exit_code == 0, done.exception
        assert re.match(
            rf"word0 word1 word2 \n{MODEL} version 2 \(generation \d+\), request [0-9a-f-]{{36}}", done.output
        )
        for arguments, why in (
            ((), "the stack's own key may not"),
            (("--key-file", str(other)), "this key may not choose"),
        ):
            done = chat(*arguments)
            assert (type(done.exception), done.output) == (SpecError, "")
            assert why in str(done.exception)
            assert "slipway keys create NAME --may-choose" in str(done.exception)


def keeper_runs(rig: Rig) -> None:
    rig.supervisor.put(keeper.program(rig.layout))


def used_today(rig: Rig, name: str) -> int:
    now = time.time()
    return budgets.read_usage(rig.layout).of(budgets.today(now)).get(name, 0)


def test_a_budget_of_tokens_ends_in_a_refusal_until_midnight(rig: Rig) -> None:
    """429 in OpenAI's form with the seconds that are left; a restart of who counts forgets nothing; the list of models
    stays open, and other clients notice nothing."""
    keeper_runs(rig)
    key = make_key(rig, "spender", tokens_per_day=30)
    assert [rig.ask(key=key).status_code for _ in range(2)] == [200, 200]
    assert rig.gateway.wait(lambda: used_today(rig, "spender") == 24, 30)
    assert rig.ask(key=key).status_code == 200
    assert rig.gateway.wait(lambda: rig.ask(key=key).status_code == 429, 30)
    rig.supervisor.remove(keeper.PROGRAM)
    keeper_runs(rig)
    answer = rig.ask(key=key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "budget_exhausted")
    left_s = 86_400 - time.time() % 86_400
    assert abs(int(answer.headers["retry-after"]) - left_s) < 30
    assert rig.ask().status_code == 200
    headers = {"authorization": f"Bearer {key}"}
    assert httpx.get(f"{rig.gateway.url}/v1/models", headers=headers, trust_env=False).status_code == 200


def test_a_stream_counts_as_far_as_the_client_heard_it(rig: Rig) -> None:
    """Whole ones exactly, ones that were cut off with the last event that came by; no event surprises the client."""
    keeper_runs(rig)
    key = make_key(rig, "streamer")
    rig.behave("1", chunks=8, chunk_s=0.1)
    headers = {"authorization": f"Bearer {key}"}
    body = {"model": MODEL, "stream": True, "messages": []}
    url = f"{rig.gateway.url}{CHAT}"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=30, trust_env=False) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    assert [len(event["choices"]) for event in events] == [1] * 8
    assert events[-1]["usage"]["total_tokens"] == 18
    assert rig.gateway.wait(lambda: used_today(rig, "streamer") == 18, 30)
    with httpx.stream("POST", url, json=body, headers=headers, timeout=30, trust_env=False) as answer:
        lines = answer.iter_lines()
        for _ in range(3):
            next(lines)
    assert rig.gateway.wait(lambda: used_today(rig, "streamer") > 18, 30)
    assert 18 + 11 <= used_today(rig, "streamer") < 18 + 18
    rig.behave("1", echo=True)
