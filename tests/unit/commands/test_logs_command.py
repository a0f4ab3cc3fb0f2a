"""Which logs `slipway logs` finds."""

from pathlib import Path

import pytest

from pipeline.commands import logs
from pipeline.errors import SpecError
from pipeline.stack.layout import Layout


def test_logs_for_people_and_for_programs_are_found_by_their_names(tmp_path: Path) -> None:
    """Such as the gateway's own, and its access log."""
    layout = Layout(tmp_path)
    layout.create()
    for name in ("gateway.log", "gateway-access.jsonl"):
        (layout.logs_path / name).write_text("x")
    assert [logs.find(layout, name)[0].name for name in logs.known(layout)] == ["gateway.log", "gateway-access.jsonl"]
    with pytest.raises(SpecError, match="There are: gateway, gateway-access"):
        logs.find(layout, "nobody")
