"""The gateway's own rules, against a real Envoy with stand-in replicas."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fleet_rig import MODEL, Rig

from pipeline.errors import TransientError
from pipeline.fleet.gateway import probe_key
from pipeline.fleet.views import read_fleet

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A gateway with the models `tiny` (version 1) and `other` (version 4)."""
    rig = Rig(tmp_path_factory.mktemp("gateway"))
    rig.up()
    rig.registry.configure(replicas=1, step_s=1.0, min_requests=5)
    assert rig.ask().status_code == 503
    assert rig.ask().json()["error"]["code"] == "nothing_served"
    rig.roll_out("1")
    rig.roll_out("4", name="other")
    yield rig
    rig.supervisor.stop()


def call(rig: Rig, method: str, path: str, **arguments: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {rig.key}", **arguments.pop("headers", {})}
    url = rig.gateway.url + path
    return httpx.request(method, url, headers=headers, trust_env=False, verify=False, timeout=30, **arguments)


def test_each_model_is_answered_by_its_own_replicas(rig: Rig) -> None:
    """The `model` in the body decides, and the replica says what it is."""
    for name, version in ((MODEL, "1"), ("other", "4")):
        answer = rig.ask(name)
        assert (answer.status_code, answer.headers["x-slipway-version"]) == (200, version)
        assert answer.headers["x-slipway-model"] == name


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/chat/completions", b'{"model": "nobody"}', 404, "model_not_found"),
        ("POST", "/v1/chat/completions", b'{"messages": []}', 400, "missing_model"),
        ("POST", "/v1/chat/completions", b"not json", 400, "bad_request"),
        ("POST", "/v1/chat/completions", b"", 400, "missing_model"),
        ("POST", "/v1/chat/completions", b"x" * 1_100_000, 413, "request_too_large"),
        ("GET", "/v1/chat/completions", None, 404, "unknown_path"),
        ("POST", "/v1/embeddings", b'{"model": "tiny"}', 404, "unknown_path"),
        ("POST", "/invocations", b'{"model": "tiny"}', 404, "unknown_path"),
        ("POST", "/tokenize", b'{"model": "tiny"}', 404, "unknown_path"),
        ("GET", "/metrics", None, 404, "unknown_path"),
        ("GET", "/v1/../metrics", None, 404, "unknown_path"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_openai_form(
    rig: Rig, method: str, path: str, body: bytes | None, status: int, code: str
) -> None:
    """A client library shows the message of the error object."""
    answer = call(rig, method, path, content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Bearer", "Basic dXNlcjpwYXNz"])
def test_without_the_right_key_nothing_is_answered(rig: Rig, authorization: str | None) -> None:
    """Only the health path is open."""
    headers = {} if authorization is None else {"authorization": authorization}
    answer = httpx.post(
        f"{rig.gateway.url}/v1/chat/completions", json={"model": MODEL}, headers=headers, trust_env=False
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert httpx.get(f"{rig.gateway.url}/v1/models", headers=headers, trust_env=False).status_code == 401
    assert httpx.get(f"{rig.gateway.url}/healthz", headers=headers, trust_env=False).status_code == 200


def test_the_models_are_listed(rig: Rig) -> None:
    """In OpenAI's form."""
    assert [model["id"] for model in call(rig, "GET", "/v1/models").json()["data"]] == ["other", MODEL]


def test_a_client_cannot_name_itself(rig: Rig) -> None:
    """The replica sees the client that the key belongs to, and never the key."""
    answer = rig.ask(**{"x-client-id": "slipway-probe"})
    assert answer.json()["choices"][0]["message"]["content"] == "client client"


def sessions_stay_on_one_version(rig: Rig, generation: int) -> None:
    """At half and half, each request is drawn anew unless it names a session."""
    rig.fleet.change(MODEL, generation, lambda model: model.changed(weights={1: 50, generation: 50}))
    assert len({rig.ask().headers["x-slipway-version"] for _ in range(40)}) == 2
    sessions = [f"session-{number}" for number in range(20)]
    drawn = [rig.ask(**{"x-slipway-session": name}).headers["x-slipway-version"] for name in sessions]
    assert len(set(drawn)) == 2
    for _ in range(3):
        again = [rig.ask(**{"x-slipway-session": name}).headers["x-slipway-version"] for name in sessions]
        assert again == drawn
    sessions_stay_while_weights_rise(rig, generation, sessions)


def sessions_stay_while_weights_rise(rig: Rig, generation: int, sessions: list[str]) -> None:
    """Who was given the canary keeps it at every further step; the others follow, once."""
    moved: set[str] = set()
    for weight in (10, 25, 50, 75, 100):
        weights = {1: 100 - weight, generation: weight}
        rig.fleet.change(MODEL, generation, lambda model, weights=weights: model.changed(weights=weights))  # type: ignore[misc]
        drawn = {name: rig.ask(**{"x-slipway-session": name}).headers["x-slipway-version"] for name in sessions}
        on_canary = {name for name, version in drawn.items() if version == "2"}
        assert moved <= on_canary
        moved = on_canary
    assert moved == set(sessions)


def test_only_the_probes_key_may_force_a_version(rig: Rig) -> None:
    """With the client's key the header changes nothing; even a claimed client id does not help."""
    rig.registry.set_alias(MODEL, "champion", "2")
    planned = rig.phase("plan", request_id="force")
    rig.phase("start_canary", request_id="force", generation=planned.generation)
    forced = {"x-slipway-canary": "always"}
    assert rig.ask(key=probe_key(rig.layout), **forced).headers["x-slipway-version"] == "2"
    for _ in range(20):
        answer = rig.ask(**forced, **{"x-client-id": "slipway-probe"})
        assert answer.headers["x-slipway-version"] == "1"
    sessions_stay_on_one_version(rig, planned.generation)
    rig.phase("roll_back", request_id="force", generation=planned.generation)
    assert rig.registry.alias(MODEL, "champion") == "1"


def test_a_stream_arrives_in_pieces_and_outlives_the_move_of_all_traffic(rig: Rig) -> None:
    """Server-sent events are not buffered, and a weight change ends no stream."""
    chunks, chunk_s = 10, 0.5
    rig.behave("1", chunks=chunks, chunk_s=chunk_s)
    body = {"model": MODEL, "stream": True}
    headers = {"authorization": f"Bearer {rig.key}"}
    seen: list[float] = []
    began = time.monotonic()
    with httpx.stream(
        "POST", f"{rig.gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=30, trust_env=False
    ) as answer:
        for line in answer.iter_lines():
            if line and len(seen) == 3:
                rig.roll_out("2")
            if line:
                seen.append(time.monotonic())
                last = line
    assert last == "data: [DONE]"
    assert len(seen) == chunks + 1
    assert seen[2] - began < chunks * chunk_s, "the replica had said everything before its first words were here"
    assert rig.ask().headers["x-slipway-version"] == "2"


def test_the_access_log_says_who_and_what_but_never_the_prompt(rig: Rig) -> None:
    """One JSON object a request."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "a secret prompt"}]}
    request_id = call(rig, "POST", "/v1/chat/completions", json=body).headers["x-request-id"]
    assert rig.gateway.wait(lambda: request_id in rig.gateway.access_log_path.read_text(), 60)
    text = rig.gateway.access_log_path.read_text()
    line = next(json.loads(line) for line in text.splitlines() if request_id in line)
    assert (line["code"], line["client"], line["model"]) == (200, "client", MODEL)
    assert line["version"]
    assert line["duration_us"] > 0
    assert "secret prompt" not in text
    assert rig.key not in text


def test_a_large_access_log_is_started_anew(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway goes on writing, to the new file."""
    monkeypatch.setattr("pipeline.fleet.gateway.MAX_ACCESS_LOG_BYTES", 10)
    rig.gateway.rotate_access_log()
    request_id = rig.ask().headers["x-request-id"]
    path = rig.gateway.access_log_path
    assert rig.gateway.wait(lambda: path.exists() and request_id in path.read_text(), 60)
    assert path.with_suffix(".1.jsonl").exists()


def test_keys_are_readable_by_the_owner_alone(rig: Rig) -> None:
    """The route table and the probes' key hold secrets."""
    for path in (rig.gateway.xds_path / "rds.json", rig.layout.fleet_path / "probe_key"):
        assert path.stat().st_mode & 0o077 == 0


def test_status_shows_health_and_weight(rig: Rig) -> None:
    """Without the lock, from the state files and Envoy."""
    view = read_fleet(rig.home_path)["other"]
    assert [(replica.version, replica.healthy, replica.weight) for replica in view.replicas] == [("4", True, 100.0)]


def test_a_configuration_that_envoy_refuses_is_an_error_and_changes_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one keeps serving, and nobody has waited for long."""
    began = time.monotonic()
    monkeypatch.setattr(
        "pipeline.fleet.gateway.config.cluster",
        lambda *arguments, **options: {
            "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": "broken",
            "no_such_field": 1,
        },
    )
    with pytest.raises(TransientError, match="refuses configuration"):
        rig.gateway.apply()
    assert time.monotonic() - began < 2.0
    monkeypatch.undo()
    rig.gateway.apply()
    assert rig.ask().status_code == 200


def test_the_state_folder_may_have_a_space_in_its_name(tmp_path: Path) -> None:
    """Paths go into Envoy's configuration as they are."""
    rig = Rig(tmp_path / "a home")
    rig.up()
    try:
        assert rig.ask().status_code == 503
    finally:
        rig.supervisor.stop()
