"""A real Prometheus with the configuration and the rules of infra/prometheus; it asks one stack every second."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from pipeline.fleet import targets
from pipeline.settings import ROOT
from pipeline.stack.layout import Layout

INFRA = ROOT / "infra" / "prometheus"
START_TIMEOUT_S = 30.0


@dataclass
class Prometheus:
    """Its interface for queries."""

    url: str

    def ask(self, query: str, *, at: float | None = None) -> list[dict[str, Any]]:
        """The samples of an instant query: labels in `metric`, and `value`."""
        found = self._get("query", {"query": query, **({"time": str(at)} if at else {})})
        return list(found["result"])

    def over(self, query: str, *, since: float) -> list[float]:
        """Every value that the query has had from `since` (seconds since the epoch) to now, second by second."""
        found = self._get("query_range", {"query": query, "start": str(since), "end": str(time.time()), "step": "1"})
        values = [float(value) for series in found["result"] for _, value in series["values"]]
        return [value for value in values if value == value]

    def value(self, query: str) -> float | None:
        """The only sample's value; None if there is none."""
        found = self.ask(query)
        return float(found[0]["value"][1]) if len(found) == 1 else None

    def healthy_targets(self) -> dict[str, int]:
        """Job to how many of its targets answer."""
        found: dict[str, int] = {}
        for target in self._get("targets", {})["activeTargets"]:
            found[target["scrapePool"]] = found.get(target["scrapePool"], 0) + (target["health"] == "up")
        return found

    def _get(self, what: str, parameters: dict[str, str]) -> dict[str, Any]:
        answer = httpx.get(f"{self.url}/api/v1/{what}", params=parameters, trust_env=False, timeout=20).json()
        assert answer["status"] == "success", f"{parameters}: {answer.get('error')}"
        return dict(answer["data"])


def configuration(layout: Layout, folder: Path, url: str) -> dict[str, Any]:
    """What is shipped, with this stack's addresses, and a second for what takes longer in operation."""
    shipped: dict[str, Any] = yaml.safe_load((INFRA / "prometheus.yml").read_text())
    shipped["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    shipped["rule_files"] = [str(folder / "rules" / "*.yml")]
    ports = layout.ports()
    own = {"gateway": ports.url("gateway_admin"), "fleet": ports.url("metrics"), "prometheus": url}
    for job in shipped["scrape_configs"]:
        if job["job_name"] == "replicas":
            job["file_sd_configs"][0]["files"] = [str(layout.targets_path / targets.FILE)]
            job["file_sd_configs"][0]["refresh_interval"] = "1s"
        else:
            job["static_configs"] = [{"targets": [own[job["job_name"]].removeprefix("http://")]}]
    return shipped


@contextmanager
def prometheus_server(layout: Layout, folder: Path) -> Iterator[Prometheus]:
    """Runs until the block ends."""
    shutil.copytree(INFRA / "rules", folder / "rules")
    for path in (folder / "rules").iterdir():
        path.write_text(path.read_text().replace("interval: 15s", "interval: 1s"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    served = Prometheus(f"http://{address}")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration(layout, folder, served.url)))
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
        try:
            _await_ready(served, folder / "prometheus.log")
            yield served
        finally:
            process.terminate()
            process.wait(30)


def _await_ready(served: Prometheus, log_path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            if httpx.get(f"{served.url}/-/ready", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, log_path.read_text()
        time.sleep(0.1)
