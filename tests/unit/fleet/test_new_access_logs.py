"""When the gateway's access log is begun anew, and by whom."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.fleet import gateway as part
from pipeline.fleet.doors.keeper import Keeper
from pipeline.fleet.epochs import STANDING_FILE, Process, Standing
from pipeline.fleet.gateway import Gateway
from pipeline.stack.layout import Layout


class Envoy:
    """Opens its log when it is told to, if it answers."""

    def __init__(self, log: Path) -> None:
        self.log, self.answers = log, True

    def ask(self, gateway: Gateway, path: str, *_: Any, **__: Any) -> Any:
        if not self.answers:
            return None
        if path == "/reopen_logs":
            self.log.touch()
        return {"uptime_current_epoch": "5s"}


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    """Of a gateway whose log may have ten bytes; it has nothing to say about clients."""
    layout = Layout(tmp_path)
    layout.create()
    layout.gateway_path.mkdir(exist_ok=True)
    monkeypatch.setattr(part, "MAX_ACCESS_LOG_BYTES", 10)
    monkeypatch.setattr(part, "REOPEN_TIMEOUT_S", 0.0)
    monkeypatch.setattr(Keeper, "_look_at_clients", lambda self: None)
    return Keeper(layout)


@pytest.fixture
def envoy(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> Envoy:
    found = Envoy(keeper.gateway.access_log_path)
    monkeypatch.setattr(Gateway, "ask", lambda self, *words, **more: found.ask(self, *words, **more))
    return found


def logs(keeper: Keeper) -> tuple[str | None, str | None]:
    """What the log holds, and the one before."""
    path = keeper.gateway.access_log_path
    held = [found.read_text() if found.exists() else None for found in (path, path.with_suffix(".1.jsonl"))]
    return held[0], held[1]


def test_a_log_that_has_grown_large_is_begun_anew_without_any_rollout(keeper: Keeper, envoy: Envoy) -> None:
    """The one before is kept, until the next one is large."""
    for text, held in (
        ("short", ("short", None)),
        ("a long line", ("", "a long line")),
        ("another one", ("", "another one")),
    ):
        envoy.log.write_text(text)
        keeper.look()
        assert logs(keeper) == held


def test_a_log_is_not_begun_anew_while_an_envoy_of_before_writes_to_it(keeper: Keeper, envoy: Envoy) -> None:
    """Nor while none answers, who could be told."""
    envoy.log.write_text("a long line")
    standing_path = keeper.gateway.folder / STANDING_FILE
    standing_path.write_text(Standing(draining=Process(pid=1, created=0.0)).model_dump_json())
    keeper.look()
    assert logs(keeper) == ("a long line", None)
    standing_path.write_text(Standing().model_dump_json())
    envoy.answers = False
    keeper.look()
    assert logs(keeper) == ("a long line", None)


def test_who_is_killed_before_the_gateway_was_told_leaves_that_to_the_next(keeper: Keeper, envoy: Envoy) -> None:
    """Else it would write on in the log that was put aside, for ever."""
    envoy.log.with_suffix(".1.jsonl").write_text("a long line")
    envoy.answers = False
    keeper.look()
    assert logs(keeper) == (None, "a long line")
    envoy.answers = True
    keeper.look()
    assert logs(keeper) == ("", "a long line")
