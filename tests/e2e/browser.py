"""A real browser: Debian's chromium, without a window, driven by Playwright.

    with Browser(folder) as browser:
        page = browser.open("http://127.0.0.1:5000/#/models")
        browser.screenshot(page, "models")

Pages may ask this machine only: any other address is refused, so that what a test sees needs no network.
"""

import shutil
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from playwright.sync_api import Page, Playwright, Route, sync_playwright

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TIMEOUT_MS = 60_000
"""For any single thing to appear: pages are slow on a machine that is busy with the servers too."""
_LOCAL = ("127.0.0.1", "localhost", "")


class Browser:
    """One browser with a profile of its own; screenshots land in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.console: list[str] = []
        """Errors that pages wrote to their console."""
        self._playwright: Playwright | None = None

    def __enter__(self) -> Self:
        program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        self._playwright = sync_playwright().start()
        self._context = self._playwright.chromium.launch_persistent_context(
            str(self.folder / "profile"),
            executable_path=program,
            args=list(FLAGS),
            headless=True,
            viewport={"width": 1400, "height": 1000},
        )
        self._context.set_default_timeout(TIMEOUT_MS)
        self._context.route("**/*", _local_only)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.close()
        if self._playwright is not None:
            self._playwright.stop()

    def open(self, url: str) -> Page:
        """A new page, as far as its first HTML; what it then fetches is the caller's to wait for."""
        page = self._context.new_page()
        page.on("console", lambda line: self.console.append(line.text) if line.type == "error" else None)
        page.goto(url, wait_until="domcontentloaded")
        return page

    def screenshot(self, page: Page, name: str) -> Path:
        """The whole page as `folder/name.png`."""
        path = self.folder / f"{name}.png"
        page.screenshot(path=path, full_page=True)
        return path


def _local_only(route: Route) -> None:
    if urlsplit(route.request.url).hostname in _LOCAL or route.request.url.startswith(("data:", "blob:")):
        route.continue_()
    else:
        route.abort()
