"""The rules of infra/prometheus, run by Prometheus's own tests over made-up figures."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.settings import ROOT

CASES = Path(__file__).with_name("alerts.yml")
RULES = ROOT / "infra" / "prometheus" / "rules"


def alerts() -> dict[str, dict[str, Any]]:
    """Every alert by its name."""
    groups = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


@pytest.mark.needs("prometheus")
def test_alerts_sound_when_they_should_and_are_silent_otherwise() -> None:
    """The cases say when."""
    done = subprocess.run(["promtool", "test", "rules", str(CASES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_alert_is_without_a_case_in_which_it_sounds_and_one_in_which_it_does_not() -> None:
    """`promtool` says nothing of an alert that no case names."""
    cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if "exp_alerts" in case} == alerts().keys()
    assert {case["alertname"] for case in cases if "exp_alerts" not in case} == alerts().keys()


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_how_urgent_it_is_and_what_to_do(name: str) -> None:
    """And the documentation knows it."""
    rule = alerts()[name]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "action"}
    assert f"`{name}`" in (ROOT / "docs" / "observability.md").read_text()
