"""The page Fleet in a real Airflow, with a real rollout, gateway and MLflow behind it, in a real browser."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fleet_rig import MODEL, FileRegistry, Rig
from playwright.sync_api import FrameLocator, Page, expect

from pipeline import audit
from pipeline.fleet.analysis.live import judgement_path
from pipeline.fleet.operations import rollback
from pipeline.fleet.state import Aside, ModelFleet
from pipeline.registry.models import Registry
from pipeline.settings import ROOT
from tests.e2e.browser import TIMEOUT_MS, Browser
from tests.integration.airflow_server import PASSWORD, AirflowServer
from tests.integration.mlflow_server import MlflowServer

pytestmark = [pytest.mark.integration, pytest.mark.needs("chromium")]

USERS = {"admin": "admin", "vera": "viewer"}
ROUTES = (
    *("fleet", "static/fleet.js", "static/fleet.svg"),
    *("api/fleet", f"api/versions?model={MODEL}", "api/trace?request_id=x"),
)
PRESS = {"model": MODEL, "action": "pause", "reason": "for a test", "generation": 1}


@dataclass
class WithMlflow(FileRegistry):
    """Aliases in a real MLflow; what a version is made of in a file still."""

    mlflow: Registry | None = None

    def alias(self, name: str, alias: str) -> str | None:
        assert self.mlflow
        return self.mlflow.alias(name, alias)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        assert self.mlflow
        self.mlflow.set_alias(name, alias, version)

    def compare_and_set_alias(self, name: str, alias: str, expected: str | None, version: str | None) -> bool:
        assert self.mlflow
        return self.mlflow.compare_and_set_alias(name, alias, expected, version)


def register(mlflow: MlflowServer) -> None:
    """Three versions that name a bundle, as Slipway's do, but no registration."""
    with httpx.Client(base_url=f"{mlflow.uri}/api/2.0/mlflow", timeout=60) as client:
        client.post("/registered-models/create", json={"name": MODEL}).raise_for_status()
        run = client.post("/runs/create", json={"experiment_id": "0"}).raise_for_status().json()["run"]["info"]
        source = {"source": f"{run['artifact_uri']}/bundle", "run_id": run["run_id"]}
        tags = [{"key": "slipway.bundle_digest", "value": "0" * 64}]
        for _ in range(3):
            body = {"name": MODEL, "tags": tags, **source}
            client.post("/model-versions/create", json=body).raise_for_status()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, mlflow_server: MlflowServer) -> Iterator[Rig]:
    """A fleet that serves version 1."""
    rig = Rig(tmp_path_factory.mktemp("fleet"), quiet=True)
    rig.layout.create()
    rig.layout.choose_ports({"mlflow": mlflow_server.port})
    register(mlflow_server)
    registry = Registry(mlflow_server.uri, rig.home_path)
    rig.registry = rig.fleet.registry = WithMlflow(rig.registry.path, registry)
    rig.up()
    rig.roll_out("1")
    # Such a step ends by nothing that clients do: no version can be shown to err no more than another at all.
    rig.registry.configure(step_s=600.0, max_error_rate_rise=0.0)
    yield rig
    rig.supervisor.stop()


@pytest.fixture(scope="module")
def airflow(rig: Rig, mlflow_server: MlflowServer) -> Iterator[AirflowServer]:
    """The API server alone: nothing here runs a DAG."""
    variables = {"SLIPWAY_HOME": str(rig.home_path), "MLFLOW_TRACKING_URI": mlflow_server.uri}
    folder = rig.home_path / "airflow"
    with AirflowServer(
        folder, dags_path=ROOT / "dags", variables=variables, parts=["api-server"], users=USERS
    ) as server:
        yield server


def token(airflow: AirflowServer, user: str) -> str:
    answer = httpx.post(f"{airflow.uri}/auth/token", json={"username": user, "password": PASSWORD}).raise_for_status()
    return str(answer.json()["access_token"])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    expect.set_options(timeout=TIMEOUT_MS)
    with Browser(tmp_path_factory.mktemp("pages")) as browser:
        yield browser


def open_fleet(browser: Browser, airflow: AirflowServer, user: str, *, width: int = 1280) -> tuple[Page, FrameLocator]:
    """The page in Airflow's frame, as `user` sees it."""
    page = browser.open(f"{airflow.uri}/static/pin_32.png")
    for other in page.context.pages:
        if other != page:
            other.close()
    page.set_viewport_size({"width": width, "height": 900})
    page.context.add_cookies([{"name": "_token", "value": token(airflow, user), "url": airflow.uri}])
    page.goto(f"{airflow.uri}/plugin/fleet", wait_until="domcontentloaded")
    frame = page.frame_locator("iframe")
    expect(frame.get_by_role("heading", name=MODEL)).to_be_visible(timeout=TIMEOUT_MS)
    return page, frame


@contextmanager
def canary_on_trial(rig: Rig, version: str) -> Iterator[None]:
    """A rollout that looks at its first step until somebody ends it; there are clients all the while."""
    rig.registry.set_alias(MODEL, "champion", version)
    thread = threading.Thread(target=rig.follow, args=(f"to-{version}",), daemon=True)
    with rig.load(2):
        thread.start()
        try:
            assert rig.gateway.wait(lambda: sorted(rig.state().weights.values()) == [25, 75], 60)
            yield
        finally:
            if rig.state().canary:
                rollback(rig.layout, MODEL, rig.registry)
    thread.join(60)
    assert not thread.is_alive()


def seen(row: Any) -> int:
    """How many of the canary's answers a comparison stands on."""
    found = re.search(r"(\d+)(?: and \d+)? seen", row.inner_text())
    assert found
    return int(found.group(1))


def press(frame: FrameLocator, button: str, confirm: str, reason: str) -> None:
    frame.get_by_role("button", name=button).click()
    dialog = frame.get_by_role("dialog")
    dialog.get_by_label("Reason").fill(reason)
    dialog.get_by_role("button", name=confirm, exact=True).click()
    expect(dialog).to_have_count(0)


CUT = """() => [...document.querySelectorAll(".bar b, .figure")].filter((found) => {
  const [own, room] = [found.getBoundingClientRect(), found.parentElement.getBoundingClientRect()];
  return own.width && (own.height > 24 || own.left < room.left || own.right > room.right);
}).map((found) => found.textContent)"""
"""Shares of the traffic that have lost a part, or are broken into two lines."""


def assert_shares_are_whole(rig: Rig, page: Page) -> None:
    """On a telephone too, where the bar's piece for one in twenty has no room for its figure."""
    inner = next(found for found in page.frames if "/slipway/fleet" in found.url)
    generation, before = rig.state().generation, rig.state().weights
    rig.fleet.change(MODEL, generation, lambda model: model.changed(weights={1: 95, generation: 5}))
    page.set_viewport_size({"width": 360, "height": 900})
    expect(page.frame_locator("iframe").locator(".bar .canary b")).to_be_hidden()
    expect(page.frame_locator("iframe").locator(".bar .serving b")).to_be_visible()
    assert inner.evaluate(CUT) == []
    rig.fleet.change(MODEL, generation, lambda model: model.changed(weights=before))
    page.set_viewport_size({"width": 1280, "height": 900})


def test_nobody_sees_the_page_without_a_login_and_nobody_presses_without_the_permission(
    airflow: AirflowServer,
) -> None:
    """Airflow serves a plugin's application to anybody: each of our routes refuses by itself."""
    with httpx.Client(base_url=f"{airflow.uri}/slipway/", timeout=60) as client:
        refused = {route: client.get(route).status_code for route in ROUTES}
        assert refused == dict.fromkeys(ROUTES, 401)
        ours = {"x-slipway-press": "1"}
        assert client.post("api/press", json=PRESS, headers=ours).status_code == 401
        viewer = {"authorization": f"Bearer {token(airflow, 'vera')}"}
        assert client.get("api/fleet", headers=viewer).json()["may_press"] is False
        assert client.post("api/press", json=PRESS, headers={**ours, **viewer}).status_code == 403
        assert client.get("api/fleet", headers={"authorization": "Bearer nonsense"}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-slipway-press": "1", "origin": "http://elsewhere.example"},
        {"x-slipway-press": "1", "sec-fetch-site": "cross-site"},
    ],
    ids=["a form of another site", "a script of another site", "another site, as the browser says"],
)
def test_another_site_cannot_press_with_a_users_cookie(airflow: AirflowServer, headers: dict[str, str]) -> None:
    """The browser would send the cookie along."""
    cookies = {"_token": token(airflow, "admin")}
    with httpx.Client(base_url=airflow.uri, cookies=cookies, timeout=60) as client:
        assert client.post("/slipway/api/press", json=PRESS, headers=headers).status_code == 403
        stale = client.post("/slipway/api/press", json={**PRESS, "generation": 77}, headers={"x-slipway-press": "1"})
    assert stale.status_code == 422
    assert "since the page was drawn, which showed 77" in stale.json()["detail"]


def test_a_rollout_is_watched_paused_resumed_and_rolled_back(
    rig: Rig, airflow: AirflowServer, browser: Browser
) -> None:
    """The comparison moves while clients ask; each press takes effect and names who pressed, and why."""
    with canary_on_trial(rig, "2"):
        page, frame = open_fleet(browser, airflow, "admin")
        expect(
            frame.get_by_role("img", name="Traffic: version 1 (serving) 75 %, version 2 (canary) 25 %")
        ).to_be_visible()
        row = frame.locator(".judgement [data-measure='error rate']")
        expect(row.locator("svg.plot")).to_be_visible()
        before = seen(row)
        assert rig.gateway.wait(lambda: seen(row) > before, 30)

        press(frame, "Pause…", "Pause", "a client complains")
        expect(frame.get_by_text(re.compile("Paused by admin .*: a client complains"))).to_be_visible()
        assert rig.state().history[-1].paused is not None
        browser.screenshot(page, "paused")
        assert_shares_are_whole(rig, page)
        press(frame, "Resume…", "Resume", "it was something else")
        expect(frame.get_by_role("button", name="Pause…")).to_be_visible()
        assert rig.state().history[-1].paused is None

        press(frame, "Roll back…", "Roll back", "answers are worse")
        expect(frame.get_by_role("img", name="Traffic: version 1 (serving) 100 %")).to_be_visible()
        last = frame.locator(".past li").first
        expect(last).to_contain_text("rolled back")
        expect(last).to_contain_text("answers are worse")
        expect(last).to_contain_text("by admin")
        assert rig.registry.alias(MODEL, "champion") == "1"
    told = {(entry.action, entry.actor, entry.reason) for entry in audit.read_entries(rig.home_path)}
    assert {("pause", "admin", "a client complains"), ("resume", "admin", "it was something else")} <= told
    expect(frame.locator(".entries")).to_contain_text("answers are worse")
    assert browser.console == []


def test_the_page_fits_a_narrow_screen_in_the_dark_and_offers_a_viewer_no_button(
    rig: Rig, airflow: AirflowServer, browser: Browser
) -> None:
    """Nothing is cut off at 360 pixels, and the theme is Airflow's."""
    page, frame = open_fleet(browser, airflow, "vera", width=360)
    expect(frame.get_by_text("who may only look")).to_be_visible()
    expect(frame.locator("#models").get_by_role("button")).to_have_count(0)
    page.evaluate("localStorage.setItem('theme', 'dark')")
    page.reload(wait_until="domcontentloaded")
    expect(frame.locator("html[data-theme=dark]")).to_have_count(1)
    expect(frame.get_by_role("heading", name=MODEL)).to_be_visible()
    inner = next(found for found in page.frames if "/slipway/fleet" in found.url)
    assert inner.evaluate("document.documentElement.scrollWidth <= innerWidth")
    browser.screenshot(page, "narrow-and-dark")


def test_a_replica_that_is_put_aside_and_a_file_that_is_damaged_are_shown_with_why(
    rig: Rig, airflow: AirflowServer, browser: Browser
) -> None:
    """And all the rest with them."""
    why = "its answers take 4.00 s, those of the others 0.50 s (medians)"
    aside = Aside(kind="slow", reason=why, since=time.time())

    def mark(model: ModelFleet, found: Aside | None) -> ModelFleet:
        serving = model.deployment(1)
        assert serving is not None
        first, *others = serving.replicas
        replicas = (first.model_copy(update={"aside": found}), *others)
        return model.with_deployment(serving.model_copy(update={"replicas": replicas}))

    rig.fleet.files.update(MODEL, lambda model: mark(model, aside))
    kept = judgement_path(rig.home_path, MODEL).read_text()
    judgement_path(rig.home_path, MODEL).write_text("{")
    page, frame = open_fleet(browser, airflow, "vera")
    expect(frame.locator(".replicas .pill.bad")).to_have_text("put aside: slow")
    expect(frame.locator(".replicas .why")).to_contain_text(why)
    expect(frame.get_by_role("alert")).to_contain_text(f"{MODEL}.json is damaged")
    expect(frame.get_by_role("img", name="Traffic: version 1 (serving) 100 %")).to_be_visible()
    browser.screenshot(page, "aside-and-damaged")
    rig.fleet.files.update(MODEL, lambda model: mark(model, None))
    judgement_path(rig.home_path, MODEL).write_text(kept)
    expect(frame.locator(".replicas .why")).to_have_count(0)
    expect(frame.get_by_role("alert")).to_have_text("")


def test_a_version_that_cannot_be_served_is_refused_in_the_dialog(
    rig: Rig, airflow: AirflowServer, browser: Browser
) -> None:
    """The dialog offers what MLflow has and stays open with the reason; nothing was changed."""
    _, frame = open_fleet(browser, airflow, "admin")
    frame.get_by_role("button", name="Promote…").click()
    dialog = frame.get_by_role("dialog")
    dialog.get_by_label("Version").select_option("3")
    dialog.get_by_label("Reason").fill("it is newer")
    dialog.get_by_role("button", name="Promote", exact=True).click()
    expect(dialog.get_by_role("alert")).to_contain_text("was not registered by Slipway")
    assert rig.registry.alias(MODEL, "champion") == "1"
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_have_count(0)


@pytest.mark.drill
def test_an_answer_is_traced_from_its_id(rig: Rig, airflow: AirflowServer, browser: Browser) -> None:
    """As far as there is something: these versions have no registration, and the page says so."""
    request_id = rig.ask().headers["x-request-id"]
    _, frame = open_fleet(browser, airflow, "vera")
    frame.get_by_label("Request id").fill("no-such-request")
    frame.get_by_role("button", name="Trace").click()
    expect(frame.locator("#traced")).to_contain_text("no-such-request")
    frame.get_by_label("Request id").fill(request_id)
    frame.get_by_role("button", name="Trace").click()
    expect(frame.locator("#traced dl")).to_contain_text(request_id)
    expect(frame.locator("#traced .pill").first).to_have_text("missing")


def test_what_does_not_answer_is_said_and_health_is_not_guessed(
    rig: Rig, airflow: AirflowServer, browser: Browser
) -> None:
    """First the gateway goes, then Airflow itself: the page says so and keeps what it showed. Comes last."""
    page, frame = open_fleet(browser, airflow, "vera")
    expect(frame.locator(".replicas .pill").first).to_have_text("healthy")
    for state in rig.supervisor.states():
        if state.name.startswith("gateway"):
            rig.supervisor.remove(state.name)
    expect(frame.get_by_role("alert")).to_contain_text("The gateway does not answer")
    expect(frame.locator(".replicas .pill").first).to_have_text("unknown")
    airflow.kill("api-server")
    expect(frame.get_by_role("alert")).to_contain_text("What is shown is from")
    expect(frame.get_by_role("heading", name=MODEL)).to_be_visible()
    browser.screenshot(page, "airflow-is-gone")
