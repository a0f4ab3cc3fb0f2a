"""What replicas say of their load: the gauges of vLLM's `/metrics` (https://docs.vllm.ai/en/latest/usage/metrics)."""

import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

from pipeline.fleet.autoscaling.decisions import Observation
from pipeline.fleet.state import Replica

TIMEOUT_S = 2.0
RUNNING, WAITING, KV_CACHE = "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"
TOKENS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
SAMPLE = re.compile(r"^(vllm:\w+)(?:\{[^}]*\})? (\S+)", re.MULTILINE)


def parse(text: str) -> tuple[float, float] | None:
    """Running and waiting requests, and the share of the KV cache in use; None if it does not say all three.

    A replica with several engines says each for every one of them: requests add up, of the caches the fullest counts.
    """
    found: dict[str, list[float]] = {}
    for name, value in SAMPLE.findall(text):
        if name in (RUNNING, WAITING, KV_CACHE):
            try:
                found.setdefault(name, []).append(float(value))
            except ValueError:
                return None
    if len(found) < 3:
        return None
    return sum(found[RUNNING]) + sum(found[WAITING]), max(found[KV_CACHE])


def observe(replicas: Sequence[Replica]) -> Observation:
    """One look at all of them, at the same time; who does not answer in two seconds is left out."""
    at = time.monotonic()
    with ThreadPoolExecutor(max(1, min(16, len(replicas)))) as pool:
        loads = [load for load in pool.map(_load, replicas) if load]
    return Observation(
        at=at,
        replicas=len(replicas),
        requests=sum(requests for requests, _ in loads),
        kv_cache=sum(share for _, share in loads),
        complete=len(loads) == len(replicas),
        regions=max(1, len({replica.region for replica in replicas})),
        per_working=_per_working(replicas),
    )


def _per_working(replicas: Sequence[Replica]) -> float:
    """The gateway sends everything to the first region that has a replica which is not put aside."""
    ranks = [replica.rank for replica in replicas if replica.aside is None]
    return len(replicas) / ranks.count(min(ranks)) if ranks else 1.0


def is_busy(replica: Replica) -> bool:
    """Whether it says that it runs a request or holds one in its queue."""
    load = _load(replica)
    return load is not None and load[0] > 0


def tokens(replica: Replica) -> float | None:
    """How many it has read and generated since it began, all engines together; None if it does not say."""
    counts = [value for name, value in SAMPLE.findall(_metrics(replica) or "") if name in TOKENS]
    try:
        return sum(map(float, counts)) if counts else None
    except ValueError:
        return None


def _load(replica: Replica) -> tuple[float, float] | None:
    text = _metrics(replica)
    return None if text is None else parse(text)


def _metrics(replica: Replica) -> str | None:
    try:
        answer = httpx.get(f"http://{replica.address}/metrics", timeout=TIMEOUT_S, trust_env=False, verify=False)
    except httpx.HTTPError:
        return None
    return answer.text if answer.status_code == 200 else None
