"""What `routing: prefix` does to the time to first token, against the gateway's usual way.

    .venvs/control/bin/python tests/bench/prefix_routing.py [ROUNDS [SECONDS]]

Needs nothing running: a gateway and two vLLM replicas in a temporary folder. `USERS` chat at once, in three loads:
tenants with long prompts of their own, together with the chats more than one replica's KV cache holds and less than
both; the same with one tenant that sends most; and prompts that nobody shares. The ways take turns with the same
users and texts of their own, so that no cache holds them before. Users wait for their answers, so that a machine
which other work makes slow is asked less, too; what was seen of a way is compared within a round alone.
"""

import asyncio
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
from pipeline.contracts.rollout import Routing  # noqa: E402
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
KV_CACHE_MIB = 24
"""12,288 tokens of this model, in blocks of 128."""
SYSTEM_TOKENS, ALONE_TOKENS, USER_TOKENS, ANSWER_TOKENS = 1600, 400, 90, 40
NEW_TOKENS = 24
USERS, THINK_S = 10, 1.0
"""How many there are, and how long they think before a turn, on average."""
PERCENTILES = (50, 95)
WARM_UP = 0.3
"""Of each turn's seconds, in which nothing is counted."""
NOW: Routing = "fewest_requests"
WAYS: tuple[Routing, ...] = (NOW, "prefix")


@dataclass(frozen=True, kw_only=True)
class Load:
    """Chat sessions of `turns` turns; `tenants` 0: no two sessions begin alike."""

    name: str
    tenants: int
    largest: float = 0.0
    """The share of the sessions that are the first tenant's; the others are spread evenly."""
    turns: int = 2


LOADS = (
    Load(name="tenants", tenants=12),
    Load(name="one tenant with 70 %", tenants=12, largest=0.7),
    Load(name="nothing shared", tenants=0, turns=1),
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


def route(rig: Rig, way: Routing) -> None:
    """As if the recipe of what serves had said so."""

    def changed(model: ModelFleet) -> ModelFleet:
        return model.with_deployment(model.deployments[0].model_copy(update={"routing": way}))

    rig.fleet.change(MODEL, rig.state().generation, changed)


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
                    route(rig, way)
                    before = counters(rig)
                    seen = await Chats(client, load, way, number).run(seconds)
                    seen.replicas = [after - first for after, first in zip(counters(rig), before, strict=True)]
                    found.setdefault((load.name, way), []).append(seen)
                    print(f"round {number}, {load.name}, {way}: {seen.told()}", file=sys.stderr, flush=True)
    return found


class Chats:
    """Users who chat at the same time, in one session after the other."""

    def __init__(self, client: httpx.AsyncClient, load: Load, way: Routing, number: int) -> None:
        self.client, self.load, self.way = client, load, way
        self.round = f"{load.name} {number}"
        text = random.Random(f"{self.round} {way}")
        self.systems = [digits(text, SYSTEM_TOKENS) for _ in range(load.tenants)]
        self.seen = Seen()

    async def run(self, seconds: float) -> Seen:
        await asyncio.gather(*[self._chat(user, time.monotonic(), seconds) for user in range(USERS)])
        return self.seen

    async def _chat(self, user: int, began: float, seconds: float) -> None:
        chance = random.Random(f"{self.round} {user}")
        text = random.Random(f"{self.round} {user} {self.way}")
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
        began, first_s = time.monotonic(), None
        async with self.client.stream("POST", "/v1/chat/completions", json=body) as answer:
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


def report(load: Load, way: Routing, percent: int, found: dict[tuple[str, str], list[Seen]]) -> None:
    ours, now = found[load.name, way], found[load.name, NOW]
    value, baseline = percentile_ms(ours, percent), percentile_ms(now, percent)
    pairs = [(percentile_ms([one], percent), percentile_ms([two], percent)) for one, two in zip(ours, now, strict=True)]
    line = {
        "name": f"time to first token p{percent}, {load.name}: {way}",
        "value": round(value, 1),
        "unit": "ms",
        "baseline": NOW,
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
