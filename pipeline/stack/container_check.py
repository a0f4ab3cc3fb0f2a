"""Whether one of docker compose's services is well: exit code 0 if it is, 1 and the reason if not.

    python -S -m pipeline.stack.container_check SERVICE

Standard library only, since it runs every few seconds in every container. Airflow's programs without a port of their
own are well when the API server has seen a heartbeat that is younger than their container.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.fleet import alive

TIMEOUT_S = 4.0
HEALTH = "/api/v2/monitor/health"
OWN = {
    "airflow-api-server": f"http://127.0.0.1:8080{HEALTH}",
    "mlflow": "http://127.0.0.1:5000/health",
    "gateway": "http://gateway-admin:9901/ready",
    "metrics": "http://metrics:9905/metrics",
}
"""Service to what it answers itself."""
FLEET = Path("/var/lib/slipway/fleet")
HEARTBEATS = {
    "airflow-scheduler": "scheduler",
    "airflow-dag-processor": "dag_processor",
    "airflow-triggerer": "triggerer",
}
"""Service to its name in Airflow's report."""


def main() -> int:
    service = sys.argv[1]
    try:
        problem = _problem(service)
    except (urllib.error.URLError, OSError, ValueError) as error:
        problem = f"no answer: {error}"
    if problem:
        print(problem)
    return 1 if problem else 0


def _problem(service: str) -> str:
    if service in alive.FILES:
        return judge_touch((FLEET / alive.FILES[service]).stat().st_mtime, _container_started())
    return _of_heartbeat(HEARTBEATS[service]) if service in HEARTBEATS else _of_answer(OWN[service])


def judge_touch(touched: float, since: float) -> str:
    """What is wrong with a program that touched its file at `touched`, in a container that began at `since`."""
    if touched < since:
        return "it has done nothing since its container began"
    silent_s = time.time() - touched
    return f"it has done nothing for {silent_s:.0f} s" if silent_s > alive.MAX_SILENCE_S else ""


def judge_heartbeat(report: dict[str, Any], since: float) -> str:
    """What is wrong with one part of Airflow's report; "" if nothing is. `since` in seconds since the epoch."""
    if report.get("status") != "healthy":
        return f"Airflow calls it {report.get('status')}"
    latest = next((value for name, value in report.items() if name.startswith("latest_") and value), None)
    if latest is None or datetime.fromisoformat(latest).timestamp() < since:
        return f"its latest heartbeat, {latest}, is of an earlier container"
    return ""


def _of_heartbeat(part: str) -> str:
    report = json.loads(_read(f"http://airflow-api-server:8080{HEALTH}"))
    return judge_heartbeat(report[part], _container_started())


def _of_answer(url: str) -> str:
    answer = _read(url)
    if url.endswith(HEALTH) and json.loads(answer)["metadatabase"]["status"] != "healthy":
        return "its database does not answer"
    return ""


def _read(url: str) -> bytes:
    """The body of a 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=TIMEOUT_S) as answer:
        body: bytes = answer.read()
    return body


def _container_started() -> float:
    """When this container's first process began, in seconds since the epoch."""
    ticks = int(Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19])
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime_s + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
