"""From a detected regression to the last request that reaches the canary, and from its beginning.

    .venvs/control/bin/python tests/bench/canary_rollback.py [TIMES]

Needs nothing running: a gateway, stand-in replicas and four clients in a temporary folder. Half the traffic is on the
canary when half of its answers begin to be errors.
"""

import json
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).parents[1] / "integration"), str(Path(__file__).parents[2])]

import httpx  # noqa: E402
from fleet_rig import MODEL, Rig  # noqa: E402

from pipeline.fleet.analysis.live import read_judgement  # noqa: E402

CLIENTS = 4
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder), quiet=True)
        rig.up()
        try:
            rig.registry.configure(replicas=1)
            rig.roll_out("1")
            rig.registry.configure(steps=[50, 100], step_s=60.0, min_requests=10)
            found = [measure(rig, str(number)) for number in range(2, 2 + times)]
        finally:
            rig.supervisor.stop()
    detected, began = ([figure[side] for figure in found] for side in (0, 1))
    report("from a detected regression to zero canary traffic", detected, "the goal", 1.0)
    report("from the first bad answer of a canary to zero traffic", began, "a threshold's first look", 60.0)


def measure(rig: Rig, version: str) -> tuple[float, float]:
    """Seconds from the judgement, and from the change of manners, to the canary's last request."""
    rig.behave(version)
    last, over = [0.0] * CLIENTS, threading.Event()
    headers = {"authorization": f"Bearer {rig.key}"}

    def ask(index: int) -> None:
        with httpx.Client(base_url=rig.gateway.url, headers=headers, timeout=30, trust_env=False) as client:
            while not over.is_set():
                asked = time.time()
                answer = client.post("/v1/chat/completions", json=BODY)
                if answer.headers.get("x-slipway-version") == version:
                    last[index] = asked

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        for index in range(CLIENTS):
            pool.submit(ask, index)
        try:
            rollout = pool.submit(rig.roll_out, version)
            assert rig.gateway.wait(lambda: min(last) > 0, 60)
            began = time.time()
            rig.behave(version, error_rate=0.5)
            outcomes = {result.phase: result.outcome for result in rollout.result()}
        finally:
            over.set()
    judgement = read_judgement(rig.home_path, MODEL)
    assert outcomes["shift"] == "unhealthy"
    assert judgement is not None
    assert judgement.version == version
    return max(0.0, max(last) - judgement.updated_at), max(last) - began


def report(name: str, seconds: list[float], baseline: str, baseline_s: float) -> None:
    line = {
        "name": name,
        "value": round(median(seconds), 3),
        "largest": round(max(seconds), 3),
        "unit": "s",
        "baseline": baseline,
        "baseline_value": baseline_s,
        "ratio": round(median(seconds) / baseline_s, 3),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
