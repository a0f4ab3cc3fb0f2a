"""What a person sees in MLflow's own pages after a release, in a real browser."""

from pathlib import Path

import pytest

from pipeline.registry import promotion
from pipeline.registry.models import Registry
from pipeline.stack.layout import Layout
from tests.e2e.browser import Browser
from tests.integration.finished_release import FinishedRelease
from tests.integration.mlflow_server import MlflowServer

pytestmark = [pytest.mark.integration, pytest.mark.needs("chromium")]


def test_the_pages_show_the_version_its_card_its_alias_and_its_data(
    finished_release: FinishedRelease, registry: Registry, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    """The version's page and the model's, both with the way to the page Fleet, and the run behind it."""
    layout = Layout(finished_release.settings.home_path)
    layout.create()
    fleet_url = f"http://127.0.0.1:{layout.choose_ports().airflow}/plugin/fleet/slipway/fleet"
    spec = finished_release.build([True] * 90 + [False] * 10)
    assert finished_release.register(spec) == 0
    name = finished_release.recipe.name
    promotion.promote_by_hand(registry, name=name, version="1", promoted_by="ada")
    with Browser(tmp_path) as browser:
        page = browser.open(f"{mlflow_server.uri}/#/models/{name}/versions/1")
        page.get_by_text("How to call it").wait_for()
        page.get_by_text("slipway.recovery").wait_for()
        page.get_by_text("champion", exact=False).first.wait_for()
        fleet = page.get_by_role("link", name="the page Fleet in Airflow")
        assert fleet.get_attribute("href") == f"{fleet_url}?model={name}"
        browser.screenshot(page, "version")
        page = browser.open(f"{mlflow_server.uri}/#/models/{name}")
        page.get_by_role("link", name="the page Fleet in Airflow").wait_for()
        run_id = registry.summary(name, "1").run_id
        experiment = page.request.get(f"{mlflow_server.uri}/api/2.0/mlflow/runs/get?run_id={run_id}").json()
        page = browser.open(
            f"{mlflow_server.uri}/#/experiments/{experiment['run']['info']['experiment_id']}/runs/{run_id}"
        )
        page.get_by_text("released/exact_match", exact=True).wait_for()
        page.get_by_text(f"{name}/train.jsonl").first.wait_for()
        browser.screenshot(page, "run")
