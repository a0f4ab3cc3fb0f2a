"""What people see: Airflow's trigger form and graph, the page Fleet, MLflow's pages. With a real browser.

Comes after test_release.py, whose first release is looked at; see conftest.py. Screenshots of all pages lie in pytest's
temporary folder (`--basetemp`), below pages0.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from browser import TIMEOUT_MS, Browser
from playwright.sync_api import FrameLocator, Page, expect
from releases import MODEL, serving, status
from running_stack import RunningStack

pytestmark = [pytest.mark.e2e, pytest.mark.needs("chromium"), pytest.mark.needs("data"), pytest.mark.timeout(1200)]

ROLLOUT_MS = 240_000
"""For a rollout, which may have to start replicas."""
FIELDS = {
    "Recipe": "What to release: the name of a recipe",
    "Training data": "Where the training rows are",
    "Held-out data": "Where the held-out rows are",
    "Overrides": "Recipe fields to change for this run, by dotted name",
}
TASKS = (
    *("plan", "validate", "finetune", "evaluate", "compress", "evaluate_compressed"),
    *("register", "approve", "promote"),
)


@pytest.fixture(scope="module")
def browser(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser whose user is logged in to Airflow, through the page."""
    expect.set_options(timeout=TIMEOUT_MS)
    with Browser(tmp_path_factory.mktemp("pages")) as found:
        page = found.open(stack.airflow_url)
        page.get_by_label("Username").fill(stack.credentials.airflow_user)
        page.locator("input[type=password]").fill(stack.credentials.airflow_password)
        page.locator("button[type=submit]").click()
        page.wait_for_url(lambda url: "login" not in url)
        page.close()
        yield found


def open_form(browser: Browser, stack: RunningStack) -> Page:
    page = browser.open(f"{stack.airflow_url}/dags/release")
    page.get_by_role("button", name="Trigger").first.click()
    expect(page.get_by_text("Training data", exact=True)).to_be_visible()
    return page


def test_the_trigger_form_has_typed_fields_that_explain_themselves(stack: RunningStack, browser: Browser) -> None:
    """In the order in which people fill them in."""
    page = open_form(browser, stack)
    for description in FIELDS.values():
        expect(page.get_by_text(description)).to_be_visible()
    labels = [page.get_by_text(re.compile(rf"^{title}\s*\*?$")) for title in FIELDS]
    for label in labels:
        expect(label).to_be_visible()
    heights = [box["y"] for label in labels if (box := label.bounding_box())]
    assert len(heights) == len(FIELDS)
    assert heights == sorted(heights)
    browser.screenshot(page, "trigger-form")
    page.close()


def test_the_trigger_form_refuses_a_bad_value(stack: RunningStack, browser: Browser) -> None:
    """The message stands in the form, and no run is started."""
    with stack.airflow() as airflow:
        before = airflow.get("/dags/release/dagRuns").json()["total_entries"]
        page = open_form(browser, stack)
        page.locator("input[name=element_dataset_uri]").fill("ftp://somewhere/rows.csv")
        page.get_by_role("button", name="Trigger").last.click()
        expect(page.get_by_text("Invalid input for param dataset_uri: 'ftp://somewhere/rows.csv'")).to_be_visible()
        browser.screenshot(page, "refused-value")
        assert airflow.get("/dags/release/dagRuns").json()["total_entries"] == before
    page.close()


def test_the_graph_of_a_release_shows_every_task(
    stack: RunningStack, browser: Browser, first_release: dict[str, Any]
) -> None:
    """And so does the grid."""
    page = browser.open(f"{stack.airflow_url}/dags/release/runs/{first_release['run_id']}")
    for name in TASKS:
        expect(page.get_by_role("link", name=name, exact=True).first).to_be_visible()
    browser.screenshot(page, "grid")
    page.get_by_role("button", name="Show Graph").click()
    for name in TASKS:
        expect(page.locator(".react-flow__node").get_by_text(name, exact=True)).to_be_visible()
    browser.screenshot(page, "graph")
    page.close()


def test_mlflows_page_of_the_champion_says_what_it_is(stack: RunningStack, browser: Browser) -> None:
    """The aliases, the scores, and the tags that name the bundle and where it comes from."""
    version = status(stack)["champion"]["version"]
    page = browser.open(f"{stack.mlflow_url}/#/models/{MODEL}/versions/{version}")
    for alias in ("champion", "serving"):
        expect(page.get_by_role("status", name=alias, exact=True)).to_be_visible()
    for tag in ("slipway.bundle_digest", "slipway.promoted_by", "slipway.rollout"):
        expect(page.get_by_text(tag, exact=True).first).to_be_visible()
    expect(page.get_by_role("heading", name="Scores")).to_be_visible()
    browser.screenshot(page, "registered-version")
    page.close()


def test_a_version_is_promoted_and_rolled_back_on_the_page_fleet(stack: RunningStack, browser: Browser) -> None:
    """From MLflow's page of the model to the page Fleet, to the DAG run that a press began, and back to MLflow."""
    before = serving(stack)
    wanted = next(version for version in ("1", "2") if version != before)
    page = browser.open(f"{stack.mlflow_url}/#/models/{MODEL}")
    fleet = page.get_by_role("link", name="the page Fleet in Airflow").get_attribute("href")
    assert fleet is not None
    page.goto(fleet, wait_until="domcontentloaded")
    frame = page.frame_locator("iframe")
    expect(frame.get_by_text(f"Version {before} is served.")).to_be_visible()

    press(frame, "Promote…", "Promote", "its answers are better", version=wanted)
    expect(
        frame.get_by_role("status").filter(has_text=f"Version {wanted} of {MODEL} is the champion now")
    ).to_be_visible()
    expect(frame.get_by_text(f"Version {wanted} is served.")).to_be_visible(timeout=ROLLOUT_MS)
    newest = frame.locator(".past li").first
    expect(newest).to_contain_text("promoted")
    expect(newest).to_contain_text(f"its answers are better · by {stack.credentials.airflow_user}")
    assert serving(stack) == wanted
    browser.screenshot(page, "fleet")

    press(frame, "Roll back…", "Roll back", "they are not")
    expect(frame.get_by_text(f"Version {before} is served.")).to_be_visible()
    expect(newest).to_contain_text("they are not")
    assert (serving(stack), status(stack)["champion"]["version"]) == (before, before)

    frame.locator(".past li").nth(1).get_by_role("link", name="DAG run").click()
    expect(page.get_by_role("link", name="start_canary", exact=True).first).to_be_visible()
    page.go_back()
    with page.expect_popup() as opened:
        frame.get_by_role("heading", name=MODEL).get_by_role("link").click()
    expect(opened.value.get_by_role("link", name="the page Fleet in Airflow")).to_be_visible()
    opened.value.close()
    page.close()


def press(frame: FrameLocator, button: str, confirm: str, reason: str, *, version: str | None = None) -> None:
    """Confirms the dialog, which closes once it is done."""
    frame.get_by_role("button", name=button).click()
    dialog = frame.get_by_role("dialog")
    if version is not None:
        dialog.get_by_label("Version").select_option(version)
    dialog.get_by_label("Reason").fill(reason)
    dialog.get_by_role("button", name=confirm, exact=True).click()
    expect(dialog).to_have_count(0)
