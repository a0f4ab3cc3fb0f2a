"""Finding one request in the gateway's access logs."""

import json
import os
from pathlib import Path

import pytest

from pipeline.errors import SpecError
from pipeline.stack.layout import Layout
from pipeline.trace import requests, trace
from pipeline.trace.requests import find_request

ID = "7b0c1b2e-6b0e-9c35-8a6b-0d9b1a9a4c57"


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr(requests, "PATIENCE_S", 0.0)
    layout = Layout(tmp_path)
    layout.logs_path.mkdir()
    return layout


def line(request_id: str, **changes: object) -> str:
    record = {
        "ts": "1763718131.250",
        "code": 200,
        "duration_us": 12500,
        "client": "client",
        "request_id": request_id,
        "path": "/v1/chat/completions",
        "model": "tiny",
        "cluster": "tiny.g3",
        "version": "2",
        "generation": "3",
        "upstream": "127.0.0.1:4000",
        "attempts": 1,
        "flags": "-",
        "details": "via_upstream",
    }
    return json.dumps({**record, **changes}, separators=(",", ":")) + "\n"


def write(layout: Layout, name: str, *lines: str, at: int = 0) -> Path:
    path = layout.logs_path / name
    path.write_text("".join(lines))
    os.utime(path, (at, at))
    return path


def test_a_request_is_found_in_the_log_that_is_being_written(layout: Layout) -> None:
    """With what the replica said of itself."""
    path = write(layout, "gateway-access.jsonl", line("a"), line(ID), line("b"))
    found = find_request(layout, ID)
    assert (found.model, found.version, found.deployment, found.status) == ("tiny", "2", 3, 200)
    assert (found.at, found.duration_ms, found.log_path) == (1763718131.25, 12.5, str(path))


def test_a_request_is_found_in_a_log_that_was_put_aside(layout: Layout) -> None:
    """And as the first or the last line, too."""
    write(layout, "gateway-access.jsonl", line("a"), at=2)
    path = write(layout, "gateway-access.1.jsonl", line(ID), line("b"), line("last"), at=1)
    assert find_request(layout, ID).log_path == find_request(layout, "last").log_path == str(path)


def test_an_id_in_another_field_is_no_request(layout: Layout) -> None:
    """A path may hold anything that a client likes."""
    write(layout, "gateway-access.jsonl", line(ID, code=201), line("b", path=ID), line("c", model=ID))
    assert find_request(layout, ID).status == 201
    write(layout, "gateway-access.jsonl", line("b", path=ID))
    with pytest.raises(SpecError, match="no request"):
        find_request(layout, ID)


def test_a_line_that_is_being_written_is_waited_for(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Envoy writes some requests at once, and may have got half way."""
    path = write(layout, "gateway-access.jsonl", line("a"), line(ID)[:-20])
    monkeypatch.setattr(requests, "PATIENCE_S", 30.0)
    monkeypatch.setattr(requests.time, "sleep", lambda seconds: path.write_text(line("a") + line(ID)))
    assert find_request(layout, ID).version == "2"


def test_an_unknown_id_is_an_error_that_names_the_logs(layout: Layout) -> None:
    """Empty ones are none."""
    write(layout, "gateway-access.jsonl", line("a"))
    write(layout, "gateway-access.1.jsonl")
    with pytest.raises(SpecError, match=rf"no request {ID} .*\(gateway-access\.jsonl\)"):
        find_request(layout, ID)


@pytest.mark.parametrize("text", ["", "-", '"', "a b", "../x", "a" * 129, "a\n"])
def test_what_can_be_no_id_is_refused_before_anything_is_read(layout: Layout, text: str) -> None:
    """With where to find one."""
    with pytest.raises(SpecError, match="x-request-id"):
        find_request(layout, text)


def test_a_refused_request_has_nothing_behind_it(layout: Layout) -> None:
    """It is found all the same, and its trace says why it ends there."""
    refused = line(
        ID, code=401, client=None, model="slipway:no-model", version=None, generation=None, details="missing_api_key"
    )
    write(layout, "gateway-access.jsonl", refused)
    found = trace(layout, ID, "http://nowhere")
    assert (found.request.status, found.request.model, found.rollout, found.version) == (401, None, None, None)
    assert found.missing == ("no replica answered (status 401, missing_api_key): nothing is behind it",)
