"""The phase `shift`: moves traffic to the canary in steps, and looks at each whether it deserves more.

Clients' own requests are what counts. Where there are fewer than `min_requests`, probes with prompts of the version's
evaluation fill up; a few are always sent, to both versions in turn, so that a version that refuses what it should
answer is found and latency is compared on the same prompts at the same time.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx

from pipeline.contracts import recipe as recipes
from pipeline.contracts.specs import RolloutResult, RolloutSpec
from pipeline.fleet.analysis import MIN_LATENCIES, AccessLog, Finding, Observation, judge
from pipeline.fleet.envoy_routes import PROBE_CLIENT
from pipeline.fleet.gateway import probe_key
from pipeline.fleet.parts import Fleet, Superseded, ended, required_rollout, with_phase
from pipeline.fleet.probes import Answer, ask, prompts_of
from pipeline.fleet.state import Deployment, ModelFleet

TICK_S = 0.1
SAY_EVERY_S = 5.0
PROBE_TIMEOUT_S = 30.0
AWAY_POLL_S = 1.0
"""While the gateway itself does not answer."""
PATIENCE = 5
"""Times `min_requests`: so many requests at most until a step that cannot be told is judged by its rate alone."""


def shift(spec: RolloutSpec, fleet: Fleet) -> RolloutResult:
    """Walks through the recipe's steps from where an earlier attempt stopped."""
    model = fleet.current(spec.name, spec.generation)
    rollout = required_rollout(model, spec.generation)
    if rollout.outcome == "failed":
        return _result(spec, model, outcome="unhealthy", reason=rollout.reason)
    if model.canary is None or "shift" in rollout.phases:
        return _result(spec, model, outcome="healthy", reason="all traffic is on it already")
    registered = fleet.registry.get(spec.name, rollout.version)
    settings = registered.recipe.rollout
    steps = (100,) if _goes_at_once(fleet, model) else settings.steps
    prompts = prompts_of(fleet.fetch_predictions(registered))
    seen = Observation(requests=0, errors=0, probes=0)
    reason = ""
    for index in range(min(rollout.step, len(steps) - 1), len(steps)):
        model = _set_weight(spec, fleet, index=index, weight=steps[index])
        fleet.say(f"{steps[index]} % of the traffic: watching for {settings.step_s:g} s or more")
        with Watch.open(fleet, model, settings, prompts) as watch:
            finding, reason, seen = watch.observe()
        fleet.say(f"{steps[index]} % of the traffic is {finding}: {reason}; {seen.probes} were probes")
        if finding != "healthy":
            model = _take_back(spec, fleet, f"at {steps[index]} % of the traffic: {reason}")
            return _result(spec, model, outcome="unhealthy", reason=reason, seen=seen)
    model = fleet.change(spec.name, spec.generation, lambda model: with_phase(model, spec.generation, "shift"))
    return _result(spec, model, outcome="healthy", reason=reason, seen=seen)


def _goes_at_once(fleet: Fleet, model: ModelFleet) -> bool:
    """The first version has nobody to share with, nor has one whose predecessor is dead; one that served a moment
    ago needs no trial."""
    stable = model.deployment(model.serving.deployment) if model.serving else None
    if stable is None or model.canary is None or not fleet.all_healthy(stable):
        return True
    return model.previous is not None and model.previous.deployment == model.canary.deployment


def _set_weight(spec: RolloutSpec, fleet: Fleet, *, index: int, weight: int) -> ModelFleet:
    def move(model: ModelFleet) -> ModelFleet:
        if model.canary is None:
            raise Superseded
        weights = {model.canary.deployment: weight}
        if model.serving:
            weights[model.serving.deployment] = 100 - weight
        rollout = required_rollout(model, spec.generation).model_copy(update={"step": index})
        return model.changed(weights=weights).with_rollout(rollout)

    return fleet.change(spec.name, spec.generation, move)


def _take_back(spec: RolloutSpec, fleet: Fleet, reason: str) -> ModelFleet:
    """All traffic back on what is serving, at once."""

    def take_back(model: ModelFleet) -> ModelFleet:
        weights = {model.serving.deployment: 100} if model.serving else {}
        return with_phase(model.changed(weights=weights), spec.generation, "shift", **ended("failed", reason))

    return fleet.change(spec.name, spec.generation, take_back)


@dataclass(kw_only=True)
class Watch:
    """Looks at one step."""

    fleet: Fleet
    model: ModelFleet
    canary: Deployment
    stable: Deployment | None
    settings: recipes.Rollout
    prompts: Iterator[str]
    client: httpx.Client
    access_log: AccessLog
    started: float = field(default_factory=time.monotonic)
    probes: int = 0
    refusals: int = 0
    """Failed probes that the gateway does not count as errors: no answer, another version's, or a 4xx that the stable
    version does not give for the same prompt."""
    probe_latencies_s: dict[str, list[float]] = field(default_factory=lambda: {"always": [], "never": []})

    @classmethod
    def open(cls, fleet: Fleet, model: ModelFleet, settings: recipes.Rollout, prompts: Iterator[str]) -> "Watch":
        assert model.canary is not None
        canary = model.deployment(model.canary.deployment)
        assert canary is not None
        watch = cls(
            fleet=fleet,
            model=model,
            canary=canary,
            stable=model.deployment(model.serving.deployment) if model.serving else None,
            settings=settings,
            prompts=prompts,
            client=httpx.Client(
                base_url=fleet.gateway.url,
                headers={"authorization": f"Bearer {probe_key(fleet.layout)}"},
                timeout=PROBE_TIMEOUT_S,
                trust_env=False,
            ),
            access_log=AccessLog.from_now(fleet.gateway.access_log_path),
        )
        watch.before = watch._host_counts()
        return watch

    before: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *exception: object) -> None:
        self.client.close()

    def observe(self) -> tuple[Finding, str, Observation]:
        """Looks for `step_s` seconds, longer while the figures are too few, shorter once errors are certain."""
        wanted = max(self.settings.min_requests, MIN_LATENCIES)
        said = self.started
        while True:
            if not self.fleet.is_newest(self.model.name, self.model.generation):
                raise Superseded
            seen = self.observed()
            elapsed = time.monotonic() - self.started
            finding, reason = self._judge(seen)
            if time.monotonic() - said > SAY_EVERY_S:
                said = time.monotonic()
                self.fleet.say(f"{self.weight} % of the traffic: {seen.requests} requests, {seen.errors} errors")
            enough = elapsed >= self.settings.step_s and seen.requests >= wanted and self.probes >= MIN_LATENCIES
            if self._errors_are_certain(seen) or (enough and finding != "undecided"):
                return finding, reason, seen
            if enough and seen.requests >= PATIENCE * wanted:
                return "unhealthy", reason, seen
            share = min(1.0, elapsed / self.settings.step_s)
            if enough or seen.requests < wanted * share or self.probes < MIN_LATENCIES * share:
                self._probe()
            else:
                time.sleep(TICK_S)

    @property
    def weight(self) -> int:
        """The canary's share of the traffic, in per cent."""
        return self.model.weights.get(self.canary.generation, 0)

    def observed(self) -> Observation:
        """What was seen since the step began.

        Clients' requests that the canary refuses (4xx) may be the clients' fault, so only probes tell; they are judged
        among themselves, or much traffic would hide them.
        """
        requests, errors = 0, 0
        for address, (now, failed) in self._host_counts().items():
            was, had_failed = self.before.get(address, (0, 0))
            restarted = now < was
            requests += now if restarted else now - was
            errors += failed if restarted else failed - had_failed
        asked = max(self.probes, self.settings.min_requests, 1)
        if self.refusals / asked > errors / max(requests, 1):
            requests, errors = asked, self.refusals
        canary_s, stable_s = self._latencies_s()
        return Observation(
            requests=max(requests, errors, self.probes),
            errors=errors,
            probes=self.probes,
            canary_latencies_s=canary_s,
            stable_latencies_s=stable_s,
        )

    def _judge(self, seen: Observation) -> tuple[Finding, str]:
        return judge(
            seen, max_error_rate=self.settings.max_error_rate, max_latency_ratio=self.settings.max_latency_ratio
        )

    def _errors_are_certain(self, seen: Observation) -> bool:
        without_latency = Observation(requests=seen.requests, errors=seen.errors, probes=seen.probes)
        return self._judge(without_latency)[0] == "unhealthy"

    def _host_counts(self) -> dict[str, tuple[int, int]]:
        """Requests and errors of each canary replica, those that a retry hid from the client too."""
        figures = self.fleet.gateway.hosts(self.model.name, self.canary.generation)
        own = {replica.address for replica in self.canary.replicas}
        return {address: (found.requests, found.errors) for address, found in figures.items() if address in own}

    def _latencies_s(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Clients' on both sides if there are enough of them, else the probes'."""
        if self.stable is None:
            return tuple(self.probe_latencies_s["always"]), ()
        by_generation = self.access_log.latencies_s(self.model.name, without=PROBE_CLIENT)
        canary_s = by_generation.get(str(self.canary.generation), ())
        stable_s = by_generation.get(str(self.stable.generation), ())
        if min(len(canary_s), len(stable_s)) >= max(self.settings.min_requests, MIN_LATENCIES):
            return canary_s, stable_s
        return tuple(self.probe_latencies_s["always"]), tuple(self.probe_latencies_s["never"])

    def _gateway_was_away(self, answer: Answer, began: float) -> bool:
        """Whether a probe has no answer because there was no gateway, or one that began after the probe did, at `began`
        (monotonic)."""
        if answer.status != 0:
            return False
        if not answer.connected:
            return True
        uptime_s = self.fleet.gateway.uptime_s()
        return uptime_s is None or uptime_s <= time.monotonic() - began

    def _probe(self) -> None:
        """The same prompt to the canary and to the stable version."""
        prompt, began = next(self.prompts), time.monotonic()
        answer = ask(self.client, self.model.name, prompt, canary="always")
        if self._gateway_was_away(answer, began):
            self.fleet.say(f"the gateway is away, which says nothing of the canary; waiting for it: {answer.failure}")
            time.sleep(AWAY_POLL_S)
            return
        beside = ask(self.client, self.model.name, prompt, canary="never") if self.stable else None
        self.probes += 1
        if answer.status == 200:
            answer = answer.expecting(self.canary.version, str(self.canary.generation))
        if answer.good:
            self.probe_latencies_s["always"].append(answer.duration_s)
        elif answer.status < 500 and not (beside and 400 <= answer.status == beside.status):
            self.refusals += 1
            self.fleet.say(f"probe failed: {answer.failure}")
        if beside and beside.good:
            self.probe_latencies_s["never"].append(beside.duration_s)


def _result(
    spec: RolloutSpec, model: ModelFleet, *, outcome: Finding, reason: str, seen: Observation | None = None
) -> RolloutResult:
    rollout = required_rollout(model, spec.generation)
    return RolloutResult(
        name=spec.name,
        generation=spec.generation,
        phase=spec.phase,
        outcome="healthy" if outcome == "healthy" else "unhealthy",
        reason=reason,
        version=rollout.version,
        previous=rollout.previous,
        observed=seen.figures() if seen else {},
    )
