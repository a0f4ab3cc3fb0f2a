"""What the gateway adds, and how long a request waits at most when something behind it, or itself, is replaced.

    .venvs/control/bin/python tests/bench/gateway.py [REQUESTS]

The same request through it and to a replica directly, in turn, on one connection each; Envoy's processor time; then
four clients without pause while a replica is killed, and while the gateway restarts. Needs nothing running: it starts
a gateway and two stand-in replicas in a temporary folder, and ends them.
"""

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

sys.path[:0] = [str(Path(__file__).parents[1] / "integration"), str(Path(__file__).parents[2])]

import httpx  # noqa: E402
import psutil  # noqa: E402
from fleet_rig import MODEL, Rig  # noqa: E402

from pipeline.fleet import epochs, gateway  # noqa: E402
from pipeline.fleet.doors import replica_door  # noqa: E402

WARM_UP = 50
CLIENTS = 4
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 1000}]}
DIRECT = "the same replica asked directly"


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder), quiet=True)
        rig.up()
        try:
            rig.registry.configure(replicas=2)
            rig.roll_out("1")
            through, direct, cpu_ms = measure(rig, requests)
            killed_s, usual_s = longest_wait_s(rig, lambda: kill_a_replica(rig))
            restarted_s, _ = longest_wait_s(rig, lambda: gateway.restart(rig.layout, drain_s=5))
        finally:
            rig.supervisor.stop()
    report("latency p50", median(through), "ms", DIRECT, median(direct))
    report("latency p99", _p99(through), "ms", DIRECT, _p99(direct))
    report("processor time of a request", cpu_ms, "ms", DIRECT, 0.0)
    report("failover, longest wait", killed_s, "s", "a request's usual time", usual_s)
    report("restart, longest wait", restarted_s, "s", "a request's usual time", usual_s)


def measure(rig: Rig, requests: int) -> tuple[list[float], list[float], float]:
    """Milliseconds of each request, alternating, so that a busy machine disturbs both alike; Envoy's own for each."""
    replica = rig.state().deployments[0].replicas[0]
    headers = {"authorization": f"Bearer {rig.key}"}
    opens = {replica_door.HEADER: replica_door.secret(rig.layout)}
    times: tuple[list[float], list[float]] = ([], [])
    before_s = envoy_cpu_s(rig)
    with (
        httpx.Client(base_url=rig.gateway.url, headers=headers, trust_env=False) as through,
        httpx.Client(base_url=f"http://{replica.address}", headers=opens, trust_env=False) as engine,
    ):
        for _ in range(WARM_UP + requests):
            for client, found in zip((through, engine), times, strict=True):
                started = time.perf_counter()
                client.post("/v1/chat/completions", json=BODY).raise_for_status()
                found.append((time.perf_counter() - started) * 1000)
    cpu_ms = (envoy_cpu_s(rig) - before_s) * 1000 / (WARM_UP + requests)
    return times[0][WARM_UP:], times[1][WARM_UP:], cpu_ms


def envoy_cpu_s(rig: Rig) -> float:
    """Seconds of processor that Envoy has used."""
    current = epochs.read_standing(rig.gateway.folder).current
    assert current is not None
    used = psutil.Process(current.process.pid).cpu_times()
    return float(used.user + used.system)


def longest_wait_s(rig: Rig, event: Callable[[], object]) -> tuple[float, float]:
    """Of all requests of some clients around `event`: the longest, and the median. One that fails ends the bench."""
    times: list[float] = []
    over = threading.Event()
    problems: list[BaseException] = []

    def ask() -> None:
        headers = {"authorization": f"Bearer {rig.key}"}
        try:
            with httpx.Client(base_url=rig.gateway.url, headers=headers, timeout=30, trust_env=False) as client:
                while not over.is_set():
                    started = time.perf_counter()
                    client.post("/v1/chat/completions", json=BODY).raise_for_status()
                    times.append(time.perf_counter() - started)
        except httpx.HTTPError as error:
            problems.append(error)

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        rig.gateway.wait(lambda: len(times) > 200, 30)
        event()
        seen = len(times)
        rig.gateway.wait(lambda: len(times) > seen + 500, 30)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    if problems:
        raise problems[0]
    return max(times), median(times)


def kill_a_replica(rig: Rig) -> None:
    state = rig.supervisor.state(rig.state().deployments[0].replicas[0].id)
    assert state is not None
    assert state.pid
    os.kill(state.pid, signal.SIGKILL)


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]


def report(name: str, value: float, unit: str, baseline: str, baseline_value: float) -> None:
    line = {
        "name": f"gateway {name}",
        "value": round(value, 3),
        "unit": unit,
        "baseline": baseline,
        "baseline_value": round(baseline_value, 3),
        "ratio": round(value / baseline_value, 3) if baseline_value else None,
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
