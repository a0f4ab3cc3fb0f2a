"""`slipway rollback`: what it says of a way back that fails."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.commands import champion, release
from pipeline.errors import SlipwayError
from pipeline.fleet import operations
from pipeline.fleet.files import FleetFiles
from pipeline.fleet.operations import RolledBack
from pipeline.stack.layout import Layout
from tests import small_fleet


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Version 1 serves, and stays: the replicas of version 2, to which somebody goes back, do not come up."""
    files = FleetFiles(tmp_path)
    with files.lock():
        files.write(small_fleet.serving())
    done = RolledBack(name="m", version="2", replaced="1", immediate=False, reason="its replicas are gone")
    monkeypatch.setattr(champion, "here", lambda: (Layout(tmp_path), SimpleNamespace()))
    monkeypatch.setattr(operations, "rollback", lambda *_, **__: done)
    monkeypatch.setattr(release, "connect", lambda layout: None)
    monkeypatch.setattr(release, "follow_rollout", lambda *_, **__: None)
    return tmp_path


def test_a_way_back_whose_rollout_fails_is_an_error(home: Path) -> None:
    """A script must not take it for done."""
    with pytest.raises(SlipwayError, match="m version 2 was not rolled out, version 1 serves"):
        champion.rollback("m")
