"""How the sum at the end of `make test` is counted."""

from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[3] / "infra" / "setup"
REPORT = '<testsuites><testsuite tests="{}" failures="{}" errors="{}" skipped="{}"></testsuite></testsuites>'


@pytest.mark.parametrize(
    ("figures", "counted"),
    [((5, 0, 0, 0), (5, 0)), ((5, 1, 1, 0), (3, 2)), ((5, 0, 0, 2), (3, 2)), ((0, 0, 0, 0), (0, 0))],
)
def test_failures_errors_and_skips_count_as_failed(
    figures: tuple[int, ...], counted: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing may hide behind a skip."""
    monkeypatch.syspath_prepend(str(SETUP))
    import check

    report = tmp_path / "report.xml"
    report.write_text(REPORT.format(*figures))
    assert check.count(report) == counted
