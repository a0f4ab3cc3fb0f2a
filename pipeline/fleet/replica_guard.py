"""Puts bad replicas aside: `python -m pipeline.fleet.replica_guard HOME`, a supervised program.

Asks every replica of what serves for its health each half second and for one token each few seconds, and reads from
the gateway's access log how long clients waited. One that `replica_findings` finds bad is marked in the fleet's state,
so that the gateway sends it nothing new; one that stands still, and is not merely slow on a busy machine, is killed,
one that answers as something else is ended after what it has begun, and who hosts it starts it again. It is used again
once it has been well for a while. Never are more than half of a version's replicas put aside. Canaries are left to
their rollout.
"""

import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from pipeline import audit, json_lines, settings
from pipeline.errors import SlipwayError, TransientError
from pipeline.fleet import alive
from pipeline.fleet.analysis.access_log import AccessLog
from pipeline.fleet.autoscaling import scraping
from pipeline.fleet.doors import replica_door
from pipeline.fleet.gateway import Gateway
from pipeline.fleet.probes import Answer, ask
from pipeline.fleet.replica_findings import WELL_S, Finding, History, Look, finding, may_leave, reason_to_kill
from pipeline.fleet.replica_processes import Processes, processes_of
from pipeline.fleet.state import Aside, Deployment, ModelFleet, Replica
from pipeline.settings import ROOT
from pipeline.stack.layout import Layout
from pipeline.stack.supervisor import Program

PROGRAM = "replica-guard"
EVERY_S = 0.5
HEALTH_TIMEOUT_S = 1.5
ASK_EVERY_S = 3.0
ASK_TIMEOUT_S = 300.0
MUTE_S = 25.0
"""So long a replica that was asked for a token may give nobody one: longer than a step of an engine takes."""
THREADS = 32

Key = tuple[str, str]
"""A replica's id and address: an id is given again."""


def program(layout: Layout) -> Program:
    """For the supervisor."""
    return Program(
        name=PROGRAM,
        command=(sys.executable, "-m", "pipeline.fleet.replica_guard", str(layout.home_path)),
        environment={"PYTHONPATH": str(ROOT)},
        priority=110,
    )


@dataclass(frozen=True)
class Target:
    """A replica of what serves."""

    model: str
    deployment: Deployment
    replica: Replica

    @property
    def key(self) -> Key:
        return key_of(self.replica)


@dataclass
class Guard:
    """The program."""

    layout: Layout
    processes: Processes
    histories: dict[Key, History] = field(default_factory=dict)
    asked: dict[Key, tuple[float, Future[Answer]]] = field(default_factory=dict)
    """The last question for a token to each, and when it was asked."""
    tokens: dict[Key, tuple[float | None, float]] = field(default_factory=dict)
    """How many each had when it was looked at while it owed an answer, and since when."""
    said: dict[str, str] = field(default_factory=dict)
    """Why a model, or (under "") all of them, was not looked after the last time."""

    def __post_init__(self) -> None:
        self.gateway = Gateway(self.layout)
        self.pool = ThreadPoolExecutor(THREADS)
        self.log = AccessLog.from_now(self.gateway.access_log_path, "", without="")
        self.client = httpx.Client(
            timeout=HEALTH_TIMEOUT_S, trust_env=False, verify=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    def run(self) -> None:
        """For ever."""
        while True:
            try:
                self.look()
                self._fails("", "")
            except SlipwayError as error:
                self._fails("", str(error))
            alive.touch(self.layout.fleet_path, PROGRAM)
            time.sleep(EVERY_S)

    def look(self) -> None:
        """Asks every replica once, and does what follows from it."""
        models = self.gateway.models().values()
        serving = [(model, found) for model in models if (found := serving_deployment(model))]
        targets = [Target(model.name, found, replica) for model, found in serving for replica in found.serving]
        for gone in self.histories.keys() - {target.key for target in targets}:
            del self.histories[gone]
            self.asked.pop(gone, None)
            self.tokens.pop(gone, None)
        for target, look in zip(targets, self.pool.map(self._look_at, targets), strict=True):
            self.histories.setdefault(target.key, History()).looks.append(self._with_answer(target, look))
        self._read_log({target.replica.address: target.key for target in targets})
        for model, found in serving:
            try:
                self._judge(model, found)
                self._fails(model.name, "")
            except SlipwayError as error:
                self._fails(model.name, str(error))

    def _fails(self, subject: str, why: str) -> None:
        """Says why something is tried again: once, not at every look."""
        if why and why != self.said.get(subject):
            say(f"will try again: {why}")
        self.said[subject] = why

    def _look_at(self, target: Target) -> Look:
        """Its health, and as what it answers."""
        try:
            answer = self.client.get(f"http://{target.replica.address}/health")
        except httpx.TimeoutException:
            works = self.processes.works(target.replica.id)
            return Look(time.monotonic(), "busy" if works else "hung")
        except httpx.HTTPError as error:
            return Look(time.monotonic(), "away", f"{type(error).__name__}: {error}")
        deployment = target.deployment
        said = (answer.headers.get("x-slipway-version"), answer.headers.get("x-slipway-generation"))
        if said != (deployment.version, str(deployment.generation)):
            detail = f"it answers as version {said[0]} of generation {said[1]}, expected {deployment.version} of"
            return Look(time.monotonic(), "wrong", f"{detail} {deployment.generation}")
        if answer.status_code != 200:
            return Look(time.monotonic(), "away", f"HTTP {answer.status_code}")
        if self._is_mute(target, time.monotonic()):
            return Look(time.monotonic(), "mute", f"it has given nobody a token for {MUTE_S:g} s, though it was asked")
        return Look(time.monotonic(), "well")

    def _is_mute(self, target: Target, now: float) -> bool:
        """Whether it owes an answer and gives nobody a token: what answers for its health is not the engine, which may
        stand still behind it."""
        began, pending = self.asked.get(target.key, (now, None))
        if pending is None or pending.done() or now - began < ASK_EVERY_S:
            self.tokens.pop(target.key, None)
            return False
        count = scraping.tokens(target.replica)
        known, since = self.tokens.get(target.key, (count, now))
        self.tokens[target.key] = (count, since if count == known else now)
        return now - self.tokens[target.key][1] >= MUTE_S

    def _with_answer(self, target: Target, look: Look) -> Look:
        """The look, or, where the replica has meanwhile answered with something that is no completion, that."""
        if look.outcome == "away":  # what comes back is another process
            self.asked.pop(target.key, None)
            return look
        began, pending = self.asked.get(target.key, (0.0, None))
        if pending is not None and not pending.done():
            return look
        if look.at - began >= ASK_EVERY_S and look.outcome == "well":
            self.asked[target.key] = (look.at, self.pool.submit(_ask, target, replica_door.secret(self.layout)))
        if pending is None or look.outcome != "well":
            return look
        answer = pending.result()
        # Refusals and 5xx are Envoy's to count; a busy replica may be late.
        is_wrong = answer.status == 200 and not answer.good
        return Look(look.at, "wrong", answer.failure) if is_wrong else look

    def _read_log(self, keys: dict[str, Key]) -> None:
        now = time.monotonic()
        for line in self.log.lines():
            key = keys.get(line.get("upstream") or "")
            if key and line.get("code") == 200 and line.get("duration_us") is not None:
                self.histories[key].answered_at = now
                if line.get("attempts") in (1, "1"):
                    self.histories[key].latencies_s.append((now, line["duration_us"] / 1e6))

    def _judge(self, model: ModelFleet, deployment: Deployment) -> None:
        now = time.monotonic()
        for replica in deployment.serving:
            history = self.histories[key_of(replica)]
            others = [other for other in deployment.trusted if other.id != replica.id]
            num_well = sum(self._is_well(other) for other in others)
            alike = [self.histories[key_of(other)] for other in others if other.region == replica.region]
            found = finding(history, alike, now)
            enough = may_leave(len(deployment.serving), num_well + 1)
            if replica.aside is not None:
                if found is None and history.well_s(now) >= WELL_S[replica.aside.kind]:
                    self._change(model, replica, None)
            elif found is not None and enough:
                history.to_end = found.reason if found.kind == "wrong" else ""
                self._change(model, replica, found)
            if history.to_end and self._end(model, replica, at_once=False, reason=history.to_end):
                history.to_end = ""
            reason = reason_to_kill(history, enough_others=enough)
            if reason and self._end(model, replica, at_once=True, reason=reason):
                history.looks.clear()

    def _is_well(self, replica: Replica) -> bool:
        looks = self.histories[key_of(replica)].looks
        return bool(looks) and looks[-1].outcome == "well"

    def _change(self, model: ModelFleet, replica: Replica, found: Finding | None) -> None:
        """Marks it in the state, and tells the gateway; under the lock, on what the state says now."""
        with self.gateway.files.lock():
            now = self.gateway.files.get(model.name)
            deployment = serving_deployment(now)
            known = deployment and next((kept for kept in deployment.replicas if kept.id == replica.id), None)
            if deployment is None or known is None:
                return
            if found and not may_leave(len(deployment.serving), len(deployment.trusted)):
                return
            aside = Aside(kind=found.kind, reason=found.reason, since=time.time()) if found else None
            changed = known.model_copy(update={"aside": aside})
            replicas = tuple(changed if kept.id == replica.id else kept for kept in deployment.replicas)
            self.gateway.files.write(now.with_deployment(deployment.model_copy(update={"replicas": replicas})))
        if found and found.kind == "slow":
            self.histories[key_of(replica)].latencies_s.clear()
        reason = found.reason if found else "it has been well again for a while"
        self._note("replica-aside" if found else "replica-back", now, replica, reason)
        self.gateway.apply()

    def _end(self, model: ModelFleet, replica: Replica, *, at_once: bool, reason: str) -> bool:
        """Whether whoever keeps its process took the order."""
        try:
            self.processes.end(replica.id, at_once=at_once)
        except TransientError as error:
            self._fails(replica.id, f"{replica.id} is not ended: {error}")
            return False
        self._fails(replica.id, "")
        self.asked.pop(key_of(replica), None)
        self._note("replica-restarted", model, replica, reason)
        return True

    def _note(self, action: str, model: ModelFleet, replica: Replica, reason: str) -> None:
        version = model.serving.version if model.serving else None
        say(f"{action} {replica.id}: {reason}", model=model.name, version=version, replica=replica.id)
        details = {"replica": replica.id}
        audit.record(
            self.layout, action=action, actor=PROGRAM, model=model.name, version=version, reason=reason, details=details
        )


def serving_deployment(model: ModelFleet) -> Deployment | None:
    """The replicas of what serves, once the gateway knows them."""
    found = model.deployment(model.serving.deployment) if model.serving else None
    return found if found and found.ready and found.routed else None


def key_of(replica: Replica) -> Key:
    return replica.id, replica.address


def _ask(target: Target, door: str) -> Answer:
    """For one token."""
    address = f"http://{target.replica.address}"
    with httpx.Client(base_url=address, timeout=ASK_TIMEOUT_S, trust_env=False, verify=False) as client:
        return ask(client, target.model, "Hello", door=door, max_tokens=1)


def say(message: str, **known: Any) -> None:
    """Into the program's log."""
    print(json_lines.line(PROGRAM, message, **known), flush=True)


def main() -> int:
    home = Layout(Path(sys.argv[1]))
    try:
        Guard(home, processes_of(settings.load(), home)).run()
    except SlipwayError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
