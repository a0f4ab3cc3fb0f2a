"""Whether requests that begin alike should go to the same replica: time to first token by each way to route them.

    .venvs/control/bin/python tests/bench/prefix_routing.py [ROUNDS [SECONDS]]

Needs nothing running: a gateway and two vLLM replicas in a temporary folder. `USERS` chat at once, in three loads:
tenants with long prompts of their own, together with the chats more than one replica's KV cache holds and less than
both; the same with one tenant that sends most; and prompts that nobody shares. The ways take turns with the same
users and texts of their own, so that no cache holds them before. Users wait for their answers, so that a machine
which other work makes slow is asked less, too; what was seen of a way is compared within a round alone.
The hash is the client's own, so none of these figures has the cost of finding it in the gateway.
"""

import asyncio
import hashlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "integration"), str(Path(__file__).parents[2])]

import httpx  # noqa: E402
from fleet_rig import MODEL, Rig  # noqa: E402

from pipeline import settings  # noqa: E402
from pipeline.artifacts.digests import folder_digest  # noqa: E402
from pipeline.fleet.envoy_config import Json  # noqa: E402
from pipeline.fleet.gateway import Gateway  # noqa: E402
from pipeline.fleet.local_replicas import LocalReplicas, VllmEngine  # noqa: E402
from pipeline.fleet.replicas import Replicas  # noqa: E402
from pipeline.fleet.state import ModelFleet  # noqa: E402
from pipeline.settings import ROOT  # noqa: E402

MAKE_MODEL = """
import sys
from pathlib import Path
from tests import tiny_llama
tiny_llama.write_model(
    Path(sys.argv[1]), hidden_size=256, intermediate_size=768, layers=4, positions=2048, steps=0
)
"""
KV_CACHE_MIB = 16
"""8,192 tokens of this model, in blocks of 128."""
SYSTEM_TOKENS, ALONE_TOKENS, USER_TOKENS, ANSWER_TOKENS = 900, 400, 90, 40
NEW_TOKENS = 24
USERS, THINK_S = 10, 1.0
"""How many there are, and how long they think before a turn, on average."""
PERCENTILES = (50, 95)
WARM_UP = 0.3
"""Of each turn's seconds, in which nothing is counted."""
PREFIX_CHARACTERS = 256
BALANCE_FACTOR = 125
"""Per cent of the replicas' mean load that one may have (Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with
Bounded Loads, arXiv:1608.01350)."""
WAY_HEADER, KEY_HEADER = "x-bench-way", "x-bench-key"


@dataclass(frozen=True, kw_only=True)
class Load:
    """Chat sessions of `turns` turns; `tenants` 0: no two sessions begin alike."""

    name: str
    tenants: int
    largest: float = 0.0
    """The share of the sessions that are the first tenant's; the others are spread evenly."""
    turns: int = 4


@dataclass(frozen=True, kw_only=True)
class Way:
    """How requests are spread: by a hash of what `of` says of the messages, or (`of` empty) as the gateway does now."""

    name: str
    of: str = ""
    bounded: bool = False


LOADS = (
    Load(name="tenants", tenants=12),
    Load(name="one tenant with 70 %", tenants=12, largest=0.7),
    Load(name="nothing shared", tenants=0, turns=1),
)
NOW = Way(name="fewest requests")
WAYS = (
    NOW,
    Way(name="hash of the prefix", of="prefix"),
    Way(name="hash of the prefix, bounded", of="prefix", bounded=True),
    Way(name="hash of the conversation, bounded", of="conversation", bounded=True),
)


@dataclass
class Seen:
    """One load, spread in one way, in one round."""

    ttft_s: list[float] = field(default_factory=list)
    replicas: list[Counter[str]] = field(default_factory=list)
    """What each replica's own counters rose by."""

    @property
    def hit_rate(self) -> float:
        """Of prompt tokens."""
        asked = sum(replica["prefix_cache_queries_total"] for replica in self.replicas)
        return sum(replica["prefix_cache_hits_total"] for replica in self.replicas) / asked

    @property
    def busiest(self) -> float:
        """The share of all requests that one replica answered."""
        answered = [replica["request_success_total"] for replica in self.replicas]
        return max(answered) / sum(answered)

    def told(self) -> str:
        times = ", ".join(f"p{percent} {percentile_ms([self], percent):.0f} ms" for percent in PERCENTILES)
        return f"{len(self.ttft_s)} requests, {times}, {self.hit_rate:.2f} cached, {self.busiest:.2f} on one replica"


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 12.0
    with tempfile.TemporaryDirectory() as folder:
        rig = serving(Path(folder))
        try:
            ComparedWays(rig.layout).apply()
            found = asyncio.run(measure(rig, rounds, seconds))
        finally:
            rig.supervisor.stop()
    for load in LOADS:
        for way in WAYS[1:]:
            for percent in PERCENTILES:
                report(load, way, percent, found)


# --- the fleet ---------------------------------------------------------------------------------------------------


def serving(folder: Path) -> Rig:
    """A fleet of two vLLM replicas."""
    rig, chosen = Rig(folder / "home", quiet=True), settings.load()
    made = folder / "made"
    subprocess.run([str(chosen.python_path("model")), "-c", MAKE_MODEL, str(made)], cwd=ROOT, check=True)
    engine = VllmEngine(rig.layout, chosen.python_path("serve"))
    rig.fleet.replicas = Replicas(LocalReplicas(rig.supervisor, engine))
    rig.fleet.fetch_bundle = lambda registered: made
    rig.up()
    rig.registry.give_other_bytes("1", folder_digest(made))
    rig.registry.configure(ready_timeout_s=400.0, kv_cache_mib=KV_CACHE_MIB, max_model_len=2048)
    rig.roll_out("1")
    assert rig.state().serving is not None, rig.said
    return rig


class ComparedWays(Gateway):
    """The gateway as it is, and beside it a cluster of the same replicas for each other way, chosen by a header."""

    def _clusters(self, models: dict[str, ModelFleet]) -> list[Json]:
        (plain,) = super()._clusters(models)
        return [plain, *[hashed_cluster(plain, number) for number in range(1, len(WAYS))]]

    def _routes(self, models: dict[str, ModelFleet]) -> Json:
        table = super()._routes(models)
        routes = table["virtual_hosts"][0]["routes"]
        plain = next(route for route in routes if "weighted_clusters" in route.get("route", {}))
        (weighted,) = plain["route"]["weighted_clusters"]["clusters"]
        kept = {name: value for name, value in plain["route"].items() if name != "weighted_clusters"}
        table["virtual_hosts"][0]["routes"] = [
            {
                "match": {"path": "/v1/chat/completions", "headers": [exactly(WAY_HEADER, str(number))]},
                "route": {
                    **kept,
                    "cluster": f"{weighted['name']}-{number}",
                    "hash_policy": [{"header": {"header_name": KEY_HEADER}}],
                },
            }
            for number in range(1, len(WAYS))
        ] + routes
        return table


def hashed_cluster(plain: Json, number: int) -> Json:
    eds = {**plain["eds_cluster_config"], "service_name": plain["name"]}
    common = dict(plain["common_lb_config"])
    if WAYS[number].bounded:
        common["consistent_hashing_lb_config"] = {"hash_balance_factor": BALANCE_FACTOR}
    changed = {"lb_policy": "MAGLEV", "eds_cluster_config": eds, "common_lb_config": common}
    name = f"{plain['name']}-{number}"
    return {**plain, **changed, "name": name, "alt_stat_name": name.replace(".", "/")}


def exactly(name: str, value: str) -> Json:
    return {"name": name, "string_match": {"exact": value}}


# --- the load ----------------------------------------------------------------------------------------------------


Message = dict[str, str]


def digits(chance: random.Random, count: int) -> str:
    """A text of so many tokens: this model's tokenizer has no token of two digits."""
    return f"{chance.randrange(10**count):0{count}d}"


def session(load: Load, systems: list[str], chance: random.Random, text: random.Random) -> list[list[Message]]:
    """What a session asks at each of its turns; the answers that it holds are given ones."""
    system = digits(text, ALONE_TOKENS)
    if load.tenants:
        largest = load.largest or 1 / load.tenants
        (system,) = chance.choices(systems, [largest, *[(1 - largest) / (load.tenants - 1)] * (load.tenants - 1)])
    turns, messages = [], [{"role": "system", "content": system}]
    for _ in range(load.turns):
        messages = [*messages, {"role": "user", "content": digits(text, USER_TOKENS)}]
        turns.append(messages)
        messages = [*messages, {"role": "assistant", "content": digits(text, ANSWER_TOKENS)}]
    return turns


def key(way: Way, messages: list[Message]) -> str:
    """What is hashed: the first characters, or everything up to the first question."""
    said = messages[0]["content"] if way.of == "prefix" else messages[0]["content"] + messages[1]["content"]
    return hashlib.sha256((said[:PREFIX_CHARACTERS] if way.of == "prefix" else said).encode()).hexdigest()


async def measure(rig: Rig, rounds: int, seconds: float) -> dict[tuple[str, str], list[Seen]]:
    """What was seen of each load, spread in each way, in each round."""
    found: dict[tuple[str, str], list[Seen]] = {}
    headers = {"authorization": f"Bearer {rig.key}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=rig.gateway.url, headers=headers, timeout=60, trust_env=False, limits=limits
    ) as client:
        for number in range(rounds):
            for load in LOADS:
                for way in WAYS[:: -1 if number % 2 else 1]:
                    before = counters(rig)
                    seen = await Chats(client, load, way, number).run(seconds)
                    seen.replicas = [after - first for after, first in zip(counters(rig), before, strict=True)]
                    found.setdefault((load.name, way.name), []).append(seen)
                    print(f"round {number}, {load.name}, {way.name}: {seen.told()}", file=sys.stderr, flush=True)
    return found


class Chats:
    """Users who chat at the same time, in one session after the other."""

    def __init__(self, client: httpx.AsyncClient, load: Load, way: Way, number: int) -> None:
        self.client, self.load, self.way = client, load, way
        self.round = f"{load.name} {number}"
        text = random.Random(f"{self.round} {way.name}")
        self.systems = [digits(text, SYSTEM_TOKENS) for _ in range(load.tenants)]
        self.seen = Seen()

    async def run(self, seconds: float) -> Seen:
        await asyncio.gather(*[self._chat(user, time.monotonic(), seconds) for user in range(USERS)])
        return self.seen

    async def _chat(self, user: int, began: float, seconds: float) -> None:
        chance = random.Random(f"{self.round} {user}")
        text = random.Random(f"{self.round} {user} {self.way.name}")
        while True:
            for messages in session(self.load, self.systems, chance, text):
                begins_s = time.monotonic() - began + chance.expovariate(1 / THINK_S)
                if begins_s > seconds:
                    return
                await asyncio.sleep(began + begins_s - time.monotonic())
                await self.ask(messages, counts=begins_s > WARM_UP * seconds)

    async def ask(self, messages: list[Message], *, counts: bool) -> None:
        body: dict[str, Any] = {"model": MODEL, "messages": messages, "stream": True, "max_tokens": NEW_TOKENS}
        body |= {"ignore_eos": True, "temperature": 0}
        headers = {}
        if self.way.of:
            headers = {WAY_HEADER: str(WAYS.index(self.way)), KEY_HEADER: key(self.way, messages)}
        began, first_s = time.monotonic(), None
        async with self.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if first_s is None and line.startswith("data: "):
                    first_s = time.monotonic() - began
        assert first_s is not None, "a stream without an event"
        if counts:
            self.seen.ttft_s.append(first_s)


# --- what came of it ---------------------------------------------------------------------------------------------


def counters(rig: Rig) -> list[Counter[str]]:
    """Each replica's own figures, added up over their labels."""
    found = []
    for replica in rig.state().deployments[0].replicas:
        figures: Counter[str] = Counter()
        for line in httpx.get(f"http://{replica.address}/metrics", trust_env=False).text.splitlines():
            if match := re.fullmatch(r"vllm:(\w+_total)(?:\{.*\})? (\S+)", line):
                figures[match[1]] += int(float(match[2]))
        found.append(figures)
    return found


def percentile_ms(rounds: list[Seen], percent: int) -> float:
    return 1000 * quantiles([value for seen in rounds for value in seen.ttft_s], n=100)[percent - 1]


def report(load: Load, way: Way, percent: int, found: dict[tuple[str, str], list[Seen]]) -> None:
    ours, now = found[load.name, way.name], found[load.name, NOW.name]
    value, baseline = percentile_ms(ours, percent), percentile_ms(now, percent)
    pairs = [(percentile_ms([one], percent), percentile_ms([two], percent)) for one, two in zip(ours, now, strict=True)]
    line = {
        "name": f"time to first token p{percent}, {load.name}: {way.name}",
        "value": round(value, 1),
        "unit": "ms",
        "baseline": NOW.name,
        "baseline_value": round(baseline, 1),
        "ratio": round(value / baseline, 3),
        "by_round": [round(one / two, 3) for one, two in pairs],
    }
    for name in ("hit_rate", "busiest"):
        for prefix, rounds in (("", ours), ("baseline_", now)):
            line[f"{prefix}{name}"] = round(sum(getattr(seen, name) for seen in rounds) / len(rounds), 3)
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
