"""What the gateway adds: the same request through it and to a replica directly, in turn, on one connection each.

    .venvs/control/bin/python tests/bench/gateway.py [REQUESTS]

Needs nothing running: it starts a gateway and one stand-in replica in a temporary folder, and ends them.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

sys.path[:0] = [str(Path(__file__).parents[1] / "integration"), str(Path(__file__).parents[2])]

import httpx  # noqa: E402
from fleet_rig import MODEL, Rig  # noqa: E402

WARM_UP = 50
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 1000}]}


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder), quiet=True)
        rig.up()
        try:
            rig.registry.configure(replicas=1)
            rig.roll_out("1")
            through, direct = measure(rig, requests)
        finally:
            rig.supervisor.stop()
    for name, figure in (("p50", median), ("p99", lambda values: quantiles(values, n=100)[98])):
        report(name, figure(through), figure(direct))


def measure(rig: Rig, requests: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each request, alternating, so that a busy machine disturbs both alike."""
    replica = rig.state().deployments[0].replicas[0]
    headers = {"authorization": f"Bearer {rig.key}"}
    times: tuple[list[float], list[float]] = ([], [])
    with (
        httpx.Client(base_url=rig.gateway.url, headers=headers, trust_env=False) as gateway,
        httpx.Client(base_url=f"http://{replica.address}", headers=headers, trust_env=False) as engine,
    ):
        for _ in range(WARM_UP + requests):
            for client, found in zip((gateway, engine), times, strict=True):
                started = time.perf_counter()
                client.post("/v1/chat/completions", json=BODY).raise_for_status()
                found.append((time.perf_counter() - started) * 1000)
    return times[0][WARM_UP:], times[1][WARM_UP:]


def report(name: str, value: float, baseline_value: float) -> None:
    line = {
        "name": f"gateway latency {name}",
        "value": round(value, 3),
        "unit": "ms",
        "baseline": "the same replica asked directly",
        "baseline_value": round(baseline_value, 3),
        "ratio": round(value / baseline_value, 3),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
