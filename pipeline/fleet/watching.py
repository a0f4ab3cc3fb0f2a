"""One traffic step of a rollout under observation: what clients and probes see of both versions, judged while it grows,
and written down for everybody to see.

Clients' own requests are what counts. Where there are fewer than `min_requests`, probes with prompts of the version's
evaluation fill up, and the judgement says so; a few are always sent, to both versions, so that a version that refuses
what it should answer is found and both are asked the same at the same time.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from pipeline.contracts.rollout import Rollout
from pipeline.evaluation.metrics import METRICS
from pipeline.fleet.analysis import judging
from pipeline.fleet.analysis.access_log import AccessLog
from pipeline.fleet.analysis.comparison import Comparison
from pipeline.fleet.analysis.evidence import Evidence, Side
from pipeline.fleet.analysis.judging import MIN_TIMES, Finding
from pipeline.fleet.analysis.live import Judgement, write_judgement
from pipeline.fleet.analysis.sequences import MeanDifference
from pipeline.fleet.envoy_routes import PROBE_CLIENT
from pipeline.fleet.parts import Fleet, Superseded, required_rollout
from pipeline.fleet.probes import Answer, Prompt, prompts_of
from pipeline.fleet.probing import Probing
from pipeline.fleet.state import Deployment, ModelFleet
from pipeline.registry.models import RegisteredVersion

Counts = tuple[int, int]
"""Requests and errors."""
TICK_S = 0.1
SAY_EVERY_S = 5.0
WRITE_EVERY_S = 1.0
PATIENCE = 5
"""Times `min_requests`: so many requests at most while errors or a median look worse and are not shown to be."""


@dataclass(kw_only=True)
class Trial:
    """What all steps of a rollout share: the recipe's limits, the golden prompts, and how they were answered."""

    settings: Rollout
    metric: str
    prompts: Iterator[Prompt]
    score: MeanDifference

    @classmethod
    def of(cls, fleet: Fleet, registered: RegisteredVersion, *, watch: int) -> "Trial":
        """`watch` numbers the first step that it will watch, from 1: the score has that step's share of alarms."""
        evaluate = registered.recipe.evaluate
        return cls(
            settings=registered.recipe.rollout,
            metric=evaluate.primary_metric,
            prompts=prompts_of(fleet.fetch_predictions(registered), max_tokens=evaluate.max_new_tokens, seed=watch),
            score=MeanDifference(alpha=judging.alpha_of(watch)),
        )


@dataclass(frozen=True)
class Seen:
    """How a step ended."""

    finding: Finding
    reason: str
    comparisons: tuple[Comparison, ...]
    evidence: Evidence


@dataclass(kw_only=True)
class Watch:
    """Looks at one step."""

    fleet: Fleet
    model: ModelFleet
    canary: Deployment
    stable: Deployment | None
    trial: Trial
    step: int
    alpha: float
    probing: Probing
    access_log: AccessLog
    evidence: Evidence
    counted: dict[Side, dict[str, Counts]] = field(default_factory=dict)
    """What the gateway's figures of each replica were when last looked at."""
    durations_ms: dict[Side, Counter[float]] = field(default_factory=dict)
    """Of a shadow: how long answers took by the gateway's figures when last looked at."""
    began: float = field(default_factory=time.monotonic)
    began_at: float = field(default_factory=time.time)

    @classmethod
    def open(cls, fleet: Fleet, model: ModelFleet, trial: Trial, *, step: int) -> "Watch":
        assert model.canary is not None
        canary = model.deployment(model.canary.deployment)
        assert canary is not None
        stable = model.deployment(model.serving.deployment) if model.serving else None
        watch = cls(
            fleet=fleet,
            model=model,
            canary=canary,
            stable=stable,
            trial=trial,
            step=step,
            alpha=judging.alpha_of(required_rollout(model, model.generation).watches),
            probing=Probing(
                fleet=fleet,
                model=model.name,
                canary=canary,
                stable=stable,
                prompts=trial.prompts,
                metric=METRICS[trial.metric],
            ),
            access_log=AccessLog.from_now(fleet.gateway.access_log_path, model.name, without=PROBE_CLIENT),
            evidence=Evidence(
                weight=model.weights.get(canary.generation, 0), has_stable=stable is not None, score=trial.score
            ),
        )
        watch.counted = {side: watch._counts(found) for side, found in watch._sides()}
        return watch

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *exception: object) -> None:
        self.probing.close()

    def observe(self, held: Callable[[], bool] = lambda: False) -> Seen:
        """Looks until the canary is shown worse, or not worse, or the time is up.

        Args:
            held: while it holds, a good canary stays under observation: what was seen stays valid, and grows.

        Raises:
            Superseded: a newer rollout of the model has begun.
        """
        said = written = self.began
        while True:
            if not self.fleet.is_newest(self.model.name, self.model.generation):
                raise Superseded
            self._look()
            seen = self._conclude()
            if seen.finding == "healthy" and held():
                seen = replace(seen, finding="undecided")
            now = time.monotonic()
            if seen.finding != "undecided" or now - written > WRITE_EVERY_S:
                written = now
                self._write(seen)
            if seen.finding != "undecided":
                return seen
            if now - said > SAY_EVERY_S:
                said = now
                self.fleet.say(f"{self.evidence.weight} % of the traffic: {judging.summary(seen.comparisons)}")
            if self._wants_probe():
                self.probing.more()
            time.sleep(TICK_S)

    @property
    def wanted(self) -> int:
        """Requests to the canary that a step has at least."""
        return max(self.trial.settings.min_requests, MIN_TIMES)

    def _conclude(self) -> Seen:
        """What is known now, and whether it is enough."""
        settings, evidence = self.trial.settings, self.evidence
        comparisons = judging.compare(evidence, settings, alpha=self.alpha)
        finding: Finding = "undecided"
        reason = judging.summary(comparisons)
        if alarm := judging.alarm(comparisons):
            finding, reason = "unhealthy", alarm
        elif evidence.num_requests >= self.wanted and evidence.probes >= MIN_TIMES:
            is_patient = evidence.num_requests < PATIENCE * self.wanted and judging.doubts(comparisons)
            if judging.all_clear(comparisons):
                finding = "healthy"
            elif time.monotonic() - self.began >= settings.step_s and not is_patient:
                finding, reason = judging.conclude(comparisons, policy=settings.on_undecided)
        return Seen(finding, reason, comparisons, evidence)

    def _wants_probe(self) -> bool:
        """Probes fill up what clients do not send, evenly over the step, and go on while it is doubted. Golden prompts
        are asked whatever clients send: they alone tell how good the answers are."""
        settings, elapsed = self.trial.settings, time.monotonic() - self.began
        share = min(1.0, elapsed / settings.step_s)
        golden = max(MIN_TIMES * share, settings.golden_per_s * elapsed)
        return self.evidence.num_requests < self.wanted * share or self.evidence.probes < golden or share >= 1

    # --- what is seen ----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Brings the evidence up to now."""
        seen = self.evidence
        requests, errors = self._since("canary", self.canary)
        seen.requests += requests
        seen.errors += errors
        if self.stable:
            requests, errors = self._since("stable", self.stable)
            seen.stable_requests += requests
            seen.stable_errors += errors
        probed = self.probing.take()
        seen.probes += probed.probes
        seen.refusals += probed.refusals
        for canary, stable in probed.scores:
            self.trial.score.add(canary, stable)
        _add_answers(seen, "canary", probed.canary)
        _add_answers(seen, "stable", probed.stable)
        self._read_log()

    def _read_log(self) -> None:
        if self.model.shadow:
            self._read_copies()
            return
        self.access_log.read()
        for side, deployment in self._sides():
            generation = str(deployment.generation)
            if side == "canary":
                self.evidence.client_requests += self.access_log.num_requests.get(generation, 0)
            self.evidence.add(side, "clients", "end-to-end latency", self.access_log.durations_s.get(generation, ()))
            self.evidence.add(side, "clients", "time to first token", self.access_log.first_bytes_s.get(generation, ()))
        self.access_log.forget()

    def _read_copies(self) -> None:
        """What the canary answered to copies, which no log holds, and the stable version to their originals."""
        for side, deployment in self._sides():
            mirrored = side == "canary"
            now = self.fleet.gateway.durations_ms(self.model.name, deployment.generation, mirrored=mirrored)
            if now is None:
                continue
            before = self.durations_ms.get(side)
            self.durations_ms[side] = now
            if before is None:
                continue
            grown = now if now.total() < before.total() else now - before  # a gateway that began anew counts from 0
            if mirrored:
                self.evidence.client_requests += grown.total()
            times_s = (ms / 1000 for ms in grown.elements())
            self.evidence.add(side, "clients", "end-to-end latency", times_s)

    def _sides(self) -> list[tuple[Side, Deployment]]:
        stable: list[tuple[Side, Deployment]] = [("stable", self.stable)] if self.stable else []
        return [("canary", self.canary), *stable]

    def _counts(self, deployment: Deployment) -> dict[str, Counts]:
        """Requests and errors of each of its own replicas, those that a retry hid from the client too."""
        figures = self.fleet.gateway.hosts(self.model.name, deployment.generation)
        own = {replica.address for replica in deployment.replicas}
        return {address: (found.requests, found.errors) for address, found in figures.items() if address in own}

    def _since(self, side: Side, deployment: Deployment) -> Counts:
        """Requests and errors since the last look; a gateway that was restarted counts from 0 again."""
        requests, errors = 0, 0
        for address, (asked, failed) in self._counts(deployment).items():
            had_asked, had_failed = self.counted[side].get(address, (0, 0))
            restarted = asked < had_asked
            requests += asked if restarted else asked - had_asked
            errors += failed if restarted else failed - had_failed
            self.counted[side][address] = (asked, failed)
        return requests, max(errors, 0)

    def _write(self, seen: Seen) -> None:
        judgement = Judgement(
            model=self.model.name,
            generation=self.model.generation,
            version=self.canary.version,
            stable_version=self.stable.version if self.stable else None,
            step=self.step,
            weight=self.evidence.weight,
            began_at=self.began_at,
            updated_at=time.time(),
            client_requests=self.evidence.client_requests,
            probes=self.evidence.probes,
            finding=seen.finding,
            reason=seen.reason,
            comparisons=seen.comparisons,
        )
        write_judgement(self.fleet.layout.home_path, judgement)


def _add_answers(seen: Evidence, side: Side, answers: list[Answer]) -> None:
    """Probes' times."""
    seen.add(side, "probes", "end-to-end latency", [found.duration_s for found in answers])
    seen.add(side, "probes", "time to first token", [found.first_token_s for found in answers if found.first_token_s])
    seen.add(side, "probes", "inter-token latency", [found.inter_token_s for found in answers if found.inter_token_s])
