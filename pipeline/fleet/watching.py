"""One traffic step of a rollout under observation: what clients and probes saw of both versions, judged while it
grows, and written down for everybody to see.

Clients' own requests are what counts. Where there are fewer than `min_requests`, probes with prompts of the version's
evaluation fill up; a few are always sent, to both versions, so that a version that refuses what it should answer is
found and latency is compared on the same prompts at the same time.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median

from pipeline.contracts import recipe as recipes
from pipeline.fleet.analysis.access_log import AccessLog
from pipeline.fleet.analysis.comparison import Comparison, Verdict
from pipeline.fleet.analysis.judging import LATENCY_FLOOR_S, MIN_LATENCIES, Finding, Observation, judge
from pipeline.fleet.analysis.live import Judgement, write_judgement
from pipeline.fleet.envoy_routes import PROBE_CLIENT
from pipeline.fleet.parts import Fleet, Superseded
from pipeline.fleet.probing import Probed, Probing
from pipeline.fleet.state import Deployment, ModelFleet

TICK_S = 0.1
SAY_EVERY_S = 5.0
WRITE_EVERY_S = 1.0
PATIENCE = 5
"""Times `min_requests`: so many requests at most until a step that cannot be told is judged by its rate alone."""


@dataclass(kw_only=True)
class Watch:
    """Looks at one step."""

    fleet: Fleet
    model: ModelFleet
    canary: Deployment
    stable: Deployment | None
    settings: recipes.Rollout
    step: int
    probing: Probing
    access_log: AccessLog
    before: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Requests and errors of each canary replica when the step began."""
    comparisons: tuple[Comparison, ...] = ()
    """As last looked at."""

    @classmethod
    def open(
        cls, fleet: Fleet, model: ModelFleet, settings: recipes.Rollout, prompts: Iterator[str], *, step: int
    ) -> "Watch":
        assert model.canary is not None
        canary = model.deployment(model.canary.deployment)
        assert canary is not None
        stable = model.deployment(model.serving.deployment) if model.serving else None
        watch = cls(
            fleet=fleet,
            model=model,
            canary=canary,
            stable=stable,
            settings=settings,
            step=step,
            probing=Probing(
                fleet=fleet, model=model.name, canary=canary, has_stable=stable is not None, prompts=prompts
            ),
            access_log=AccessLog.from_now(fleet.gateway.access_log_path, model.name, without=PROBE_CLIENT),
        )
        watch.before = watch._host_counts()
        return watch

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *exception: object) -> None:
        self.probing.close()

    def observe(self, until: Callable[[], bool] | None = None) -> tuple[Finding, str, Observation]:
        """Looks for `step_s` seconds, longer while the figures are too few, shorter once errors are certain.

        Args:
            until: ends the look early, in favour of a canary that is not found worse, as soon as it holds.
        """
        wanted = max(self.settings.min_requests, MIN_LATENCIES)
        began, began_at = time.monotonic(), time.time()
        said = written = began
        while True:
            if not self.fleet.is_newest(self.model.name, self.model.generation):
                raise Superseded
            probed = self.probing.snapshot()
            seen = self.observed(probed)
            elapsed = time.monotonic() - began
            finding, reason = self._judge(seen)
            self.comparisons = self._compare(seen)
            enough = elapsed >= self.settings.step_s and seen.requests >= wanted and seen.probes >= MIN_LATENCIES
            over = self._errors_are_certain(seen) or (enough and finding != "undecided")
            over = over or (finding == "healthy" and until is not None and until())
            if enough and seen.requests >= PATIENCE * wanted and not over:
                finding, over = "unhealthy", True
            if over or time.monotonic() - written > WRITE_EVERY_S:
                written = time.monotonic()
                self._write(finding if over else "undecided", reason, seen, began_at=began_at)
            if over:
                return finding, reason, seen
            if time.monotonic() - said > SAY_EVERY_S:
                said = time.monotonic()
                self.fleet.say(f"{self.weight} % of the traffic: {seen.requests} requests, {seen.errors} errors")
            share = min(1.0, elapsed / self.settings.step_s)
            if enough or seen.requests < wanted * share or seen.probes < MIN_LATENCIES * share:
                self.probing.more()
            time.sleep(TICK_S)

    @property
    def weight(self) -> int:
        """The canary's share of the traffic, in per cent."""
        return self.model.weights.get(self.canary.generation, 0)

    def observed(self, probed: Probed) -> Observation:
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
        asked = max(probed.probes, self.settings.min_requests, 1)
        if probed.refusals / asked > errors / max(requests, 1):
            requests, errors = asked, probed.refusals
        canary_s, stable_s = self._latencies_s(probed)
        return Observation(
            requests=max(requests, errors, probed.probes),
            errors=errors,
            probes=probed.probes,
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

    def _compare(self, seen: Observation) -> tuple[Comparison, ...]:
        worse: Verdict = "worse" if self._errors_are_certain(seen) else "undecided"
        errors = Comparison(
            measure="error rate",
            unit="points",
            canary=100 * seen.error_rate if seen.requests else None,
            margin=100 * self.settings.max_error_rate,
            verdict=worse,
            num_canary=seen.requests,
        )
        canary_s, stable_s = seen.canary_latencies_s, seen.stable_latencies_s
        if not canary_s or not stable_s:
            return (errors,)
        stable_ms = 1000 * median(stable_s)
        latency = Comparison(
            measure="end-to-end latency, median",
            unit="ms",
            canary=1000 * median(canary_s),
            stable=stable_ms,
            margin=max(1000 * LATENCY_FLOOR_S, stable_ms * (self.settings.max_latency_ratio - 1)),
            num_canary=len(canary_s),
            num_stable=len(stable_s),
        )
        return (errors, latency)

    def _write(self, finding: Finding, reason: str, seen: Observation, *, began_at: float) -> None:
        judgement = Judgement(
            model=self.model.name,
            generation=self.model.generation,
            version=self.canary.version,
            stable_version=self.stable.version if self.stable else None,
            step=self.step,
            weight=self.weight,
            began_at=began_at,
            updated_at=time.time(),
            client_requests=self.access_log.num_requests.get(str(self.canary.generation), 0),
            probes=seen.probes,
            finding=finding,
            reason=reason,
            comparisons=self.comparisons,
        )
        write_judgement(self.fleet.layout.home_path, judgement)

    def _host_counts(self) -> dict[str, tuple[int, int]]:
        """Requests and errors of each canary replica, those that a retry hid from the client too."""
        figures = self.fleet.gateway.hosts(self.model.name, self.canary.generation)
        own = {replica.address for replica in self.canary.replicas}
        return {address: (found.requests, found.errors) for address, found in figures.items() if address in own}

    def _latencies_s(self, probed: Probed) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Clients' on both sides if there are enough of them, else the probes'."""
        self.access_log.read()
        by_probes = tuple(answer.duration_s for answer in probed.canary)
        if self.stable is None:
            return by_probes, ()
        canary_s = tuple(self.access_log.durations_s.get(str(self.canary.generation), ()))
        stable_s = tuple(self.access_log.durations_s.get(str(self.stable.generation), ()))
        if min(len(canary_s), len(stable_s)) >= max(self.settings.min_requests, MIN_LATENCIES):
            return canary_s, stable_s
        return by_probes, tuple(answer.duration_s for answer in probed.stable)
