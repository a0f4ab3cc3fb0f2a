"""A replica's log: lines that programs read, without what clients say."""

import asyncio
import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from pipeline.fleet.replica_logging import JsonLines
from pipeline.fleet.replica_middleware import LOG_PROMPTS, REQUEST_ID, VARIABLES, Version
from pipeline.fleet.vllm import LOGGING_PATH
from pipeline.settings import ROOT

SECRET = "my card number is 1234"


@pytest.fixture(autouse=True)
def _replica(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in zip(VARIABLES.values(), ("m", "3", "7"), strict=True):
        monkeypatch.setenv(variable, value)


def said(message: str, error: Exception | None = None) -> dict[str, Any]:
    """What the log says of it."""
    try:
        if error:
            raise error
    except Exception as caught:  # noqa: BLE001 (any kind is logged alike)
        info: Any = (type(caught), caught, caught.__traceback__)
    else:
        info = None
    record = logging.LogRecord("vllm.engine", logging.ERROR, "engine.py", 1, message, ("a\nb",), info)
    line = JsonLines().format(record)
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_line_says_who_speaks_and_about_what() -> None:
    """Line breaks stay inside it."""
    found = said("started %s")
    assert (found["level"], found["logger"], found["message"]) == ("error", "vllm.engine", "started a\nb")
    assert (found["model"], found["version"], found["generation"]) == ("m", "3", "7")
    assert found["ts"].endswith("+00:00")
    assert "request_id" not in found


def test_what_is_logged_inside_a_request_names_it() -> None:
    """By the id that the gateway gave it; two requests side by side do not mix."""

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        seen.append(said("answers %s")["request_id"])

    async def both() -> None:
        scopes = [{"type": "http", "headers": [(b"x-request-id", name)]} for name in (b"one", b"other")]
        await asyncio.gather(*(Version(engine)(scope, None, None) for scope in scopes))  # type: ignore[arg-type]

    seen: list[str] = []
    asyncio.run(both())
    assert seen == ["one", "other"]


@pytest.mark.parametrize(("request_id", "asked", "tells"), [("r", "0", False), ("", "0", True), ("r", "1", True)])
def test_an_error_inside_a_request_does_not_quote_it_unless_asked(
    monkeypatch: pytest.MonkeyPatch, request_id: str, asked: str, tells: bool
) -> None:
    """Its kind and where it happened are enough to look for it; at the start, there is no client to quote."""
    monkeypatch.setenv(LOG_PROMPTS, asked)
    token = REQUEST_ID.set(request_id)
    try:
        found = said("failed %s", ValueError(SECRET))
    finally:
        REQUEST_ID.reset(token)
    assert found["error"] == "ValueError"
    assert "test_replica_logging.py" in found["stack"]
    assert (SECRET in json.dumps(found)) is tells


def test_the_engine_is_given_a_configuration_that_pythons_logging_takes() -> None:
    """In a Python without any package, as the formatter needs none; torch's own handlers are taken away."""
    code = """
import json, logging, logging.config, sys
sys.path.insert(0, sys.argv[1])
logging.getLogger("torch").addHandler(logging.StreamHandler(sys.stdout))
logging.config.dictConfig(json.load(open(sys.argv[2])))
for name in ("vllm.engine", "torch", "uvicorn.access", "uvicorn.error", "anything"):
    logging.getLogger(name).info("low")
    logging.getLogger(name).warning("high")
"""
    command = [sys.executable, "-I", "-S", "-c", code, str(ROOT), str(LOGGING_PATH)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["logger"], line["message"]) for line in lines] == [
        ("vllm.engine", "low"),
        *((name, "high") for name in ("vllm.engine", "torch", "uvicorn.access", "uvicorn.error", "anything")),
    ]
