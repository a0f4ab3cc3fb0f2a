"""A fleet with a real supervisord and a real Envoy, stand-in replicas, and aliases in a file.

python fleet_rig.py HOME REQUEST_ID      runs a whole rollout as the DAG does, for tests that kill it
"""

import hashlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from pipeline.contracts.base import ArtifactRef, ModelRef
from pipeline.contracts.recipe import Recipe
from pipeline.contracts.specs import RolloutResult, RolloutSpec
from pipeline.errors import DataError
from pipeline.fleet import gateway, replica_guard
from pipeline.fleet.local_replicas import LocalReplicas
from pipeline.fleet.parts import Fleet
from pipeline.fleet.replicas import Replicas
from pipeline.fleet.rollout import run_phase
from pipeline.fleet.state import ModelFleet, Replica
from pipeline.fleet.vllm import ReplicaPlan
from pipeline.registry.locks import file_lock
from pipeline.registry.models import RegisteredVersion
from pipeline.settings import ROOT
from pipeline.stack.layout import LOOPBACK, Layout
from pipeline.stack.supervisor import Program, Supervisor

MODEL = "tiny"
DIGEST = "0" * 64
ROLLOUT = {
    "replicas": 2,
    "steps": [25, 100],
    "step_s": 1.0,
    "min_requests": 10,
    "ready_timeout_s": 60.0,
    "keep_warm_s": 0.0,
}


@dataclass
class FileRegistry:
    """Aliases and tags in one JSON file, shared between processes."""

    path: Path

    def _change(self, change: Callable[[dict[str, Any]], Any]) -> Any:
        with file_lock(self.path.with_suffix(".lock")):
            held = json.loads(self.path.read_bytes()) if self.path.exists() else {"aliases": {}, "tags": {}}
            found = change(held)
            fresh = self.path.with_suffix(".fresh")
            fresh.write_text(json.dumps(held))
            fresh.replace(self.path)
            return found

    def alias(self, name: str, alias: str) -> str | None:
        found: str | None = self._change(lambda held: held["aliases"].get(f"{name}@{alias}"))
        return found

    def set_alias(self, name: str, alias: str, version: str) -> None:
        self._change(lambda held: held["aliases"].update({f"{name}@{alias}": version}))

    def compare_and_set_alias(self, name: str, alias: str, expected: str | None, version: str | None) -> bool:
        def swap(held: dict[str, Any]) -> bool:
            if held["aliases"].get(f"{name}@{alias}") != expected:
                return False
            held["aliases"][f"{name}@{alias}"] = version
            return True

        return bool(self._change(swap))

    def tag(self, name: str, version: str, key: str, value: str) -> None:
        self._change(lambda held: held["tags"].update({f"{name}/{version}/{key}": value}))

    def tags(self) -> dict[str, str]:
        found: dict[str, str] = self._change(lambda held: held["tags"])
        return found

    def get(self, name: str, version: str) -> RegisteredVersion:
        if version == "foreign":
            raise DataError("not registered by Slipway")
        settings = {**ROLLOUT, **self._change(lambda held: held.get("rollout", {}))}
        recipe = Recipe.model_validate(
            {
                "name": name,
                "dataset": {"generate": {"kind": "support-intents"}},
                "base_model": {"init": {"max_position_embeddings": 2048}},
            }
            | {"rollout": settings}
        )
        artifact = ArtifactRef(uri=f"file:///nowhere/compress/{version}", digest=DIGEST)
        return RegisteredVersion(
            name=name,
            version=version,
            created_at="2026-01-01T00:00:00+00:00",
            run_id=None,
            tags={},
            bundle=ModelRef(artifact=artifact),
            bundle_digest=self._change(lambda held: held.get("digests", {}).get(version, DIGEST)),
            registration=artifact,
            recipe=recipe,
        )

    def give_other_bytes(self, version: str, digest: str = "1" * 64) -> None:
        """As a registry that was put back from a backup may, once the number is given again."""
        self._change(lambda held: held.setdefault("digests", {}).update({version: digest}))

    def configure(self, **settings: object) -> None:
        """Changes the rollout settings of every version's recipe."""
        self._change(lambda held: held.setdefault("rollout", {}).update(settings))


@dataclass
class StandInEngine:
    """Replicas that behave as `home/behaviour/<version>.json` says."""

    home_path: Path

    def program(self, plan: ReplicaPlan) -> Program:
        script = Path(__file__).with_name("stand_in_replica.py")
        behaviour = self.home_path / "behaviour" / f"{plan.version}.json"
        return Program(
            name=plan.replica.id,
            command=(sys.executable, str(script), str(plan.replica.port), str(behaviour), plan.replica.host),
            environment={
                "PYTHONPATH": str(ROOT),
                "SLIPWAY_REPLICA_MODEL": plan.model,
                "SLIPWAY_REPLICA_VERSION": plan.version,
                "SLIPWAY_REPLICA_GENERATION": str(plan.generation),
                "SLIPWAY_REPLICA_DOOR": hashlib.sha256(plan.door.encode()).hexdigest(),
            },
            start_retries=1,
        )


@dataclass
class Rig:
    """One fleet under test."""

    home_path: Path
    quiet: bool = False
    regions: dict[str, str] = field(default_factory=dict)
    """Name to address, as `SLIPWAY_REGIONS` says."""
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layout = Layout(self.home_path)
        self.supervisor = Supervisor(self.home_path)
        self.registry = FileRegistry(self.home_path / "registry.json")
        self.fleet = Fleet(
            layout=self.layout,
            registry=self.registry,
            replicas=Replicas(self._host(), poll_s=0.05),
            fetch_bundle=lambda version: self.home_path,
            fetch_predictions=lambda version: None,
            say=self._say,
        )

    def _host(self) -> LocalReplicas:
        addresses = tuple(self.regions.values()) or (LOOPBACK,)
        return LocalReplicas(self.supervisor, StandInEngine(self.home_path), addresses)

    def _say(self, message: str) -> None:
        self.said.append(message)
        if not self.quiet:
            print(message, flush=True)

    def up(self) -> None:
        self.layout.create()
        self.layout.choose_ports()
        self.layout.choose_regions(self.regions)
        self.layout.ensure_credentials()
        self.supervisor.start()
        self.supervisor.put(gateway.program(self.layout))
        assert self.gateway.wait(lambda: self.gateway.healthy() is not None, 60)

    @property
    def gateway(self) -> gateway.Gateway:
        return self.fleet.gateway

    @property
    def key(self) -> str:
        return self.layout.credentials().api_key

    def behave(self, version: str, **manners: object) -> None:
        folder = self.home_path / "behaviour"
        folder.mkdir(exist_ok=True)
        fresh = folder / f".{version}"
        fresh.write_text(json.dumps(manners))
        fresh.replace(folder / f"{version}.json")

    def misbehave(self, replica: Replica, **manners: object) -> None:
        """This replica alone, on top of what its version does."""
        self.behave(f"port-{replica.port}", **manners)

    def guard(self) -> None:
        """Lets bad replicas be put aside."""
        self.supervisor.put(replica_guard.program(self.layout))

    def state(self, name: str = MODEL) -> ModelFleet:
        return self.fleet.files.get(name)

    def phase(self, phase: str, *, request_id: str, generation: int = 0, name: str = MODEL) -> RolloutResult:
        spec = RolloutSpec.model_validate(
            {"name": name, "generation": generation, "phase": phase, "request_id": request_id}
        )
        return run_phase(spec, self.fleet)

    def follow(self, request_id: str, name: str = MODEL) -> list[RolloutResult]:
        """Every phase, with the DAG's branches."""
        results = [self.phase("plan", request_id=request_id, name=name)]
        if results[0].outcome == "nothing_to_do":
            return results
        generation = results[0].generation
        for phase, needs in (("start_canary", "done"), ("shift", "healthy")):
            results.append(self.phase(phase, request_id=request_id, generation=generation, name=name))
            if results[-1].outcome == "superseded":
                return results
            if results[-1].outcome != needs:
                results.append(self.phase("roll_back", request_id=request_id, generation=generation, name=name))
                break
        else:
            results.append(self.phase("promote", request_id=request_id, generation=generation, name=name))
        results.append(self.phase("retire", request_id=request_id, generation=generation, name=name))
        return results

    def roll_out(self, version: str, name: str = MODEL) -> list[RolloutResult]:
        """What happens after somebody moved the alias."""
        self.registry.set_alias(name, "champion", version)
        return self.follow(f"to-{version}-{time.monotonic_ns()}", name)

    def ask(self, name: str = MODEL, *, key: str | None = None, **headers: str) -> httpx.Response:
        return httpx.post(
            f"{self.gateway.url}/v1/chat/completions",
            json={"model": name, "messages": [{"role": "user", "content": "hi"}]},
            headers={"authorization": f"Bearer {key or self.key}", **headers},
            timeout=30,
            trust_env=False,
            verify=False,
        )

    @contextmanager
    def load(self, clients: int = 3) -> Iterator["Load"]:
        """Clients that ask without a pause; ends when the block does."""
        load = Load(self)
        threads = [threading.Thread(target=load.run) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield load
        finally:
            load.over.set()
            for thread in threads:
                thread.join()


@dataclass
class Load:
    """What the clients got."""

    rig: Rig
    over: threading.Event = field(default_factory=threading.Event)
    answers: Counter[tuple[int, str | None]] = field(default_factory=Counter)
    """By status (0: no answer) and version."""
    failures: list[str] = field(default_factory=list)

    def run(self) -> None:
        headers = {"authorization": f"Bearer {self.rig.key}"}
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        url = self.rig.gateway.url
        with httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False, verify=False) as client:
            while not self.over.is_set():
                try:
                    answer = client.post("/v1/chat/completions", json=body)
                except httpx.HTTPError as error:
                    self.answers[(0, None)] += 1
                    self.failures.append(repr(error))
                    continue
                self.answers[(answer.status_code, answer.headers.get("x-slipway-version"))] += 1
                if answer.status_code != 200:
                    self.failures.append(f"{answer.status_code} {answer.text[:200]}")
                self.over.wait(0.02)

    def count(self, version: str) -> int:
        return self.answers[(200, version)]

    @property
    def total(self) -> int:
        return sum(self.answers.values())


if __name__ == "__main__":
    for result in Rig(Path(sys.argv[1])).follow(sys.argv[2]):
        print(result.phase, result.outcome, result.reason, flush=True)
