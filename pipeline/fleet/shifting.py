"""The phase `shift`: moves traffic to the canary in steps, and looks at each whether it deserves more.

`pipeline.fleet.watching` looks.
"""

from pipeline.contracts.specs import RolloutResult, RolloutSpec
from pipeline.fleet.analysis.comparison import Comparison
from pipeline.fleet.analysis.judging import Finding, Observation
from pipeline.fleet.parts import Fleet, Superseded, ended, required_rollout, with_phase
from pipeline.fleet.probes import prompts_of
from pipeline.fleet.state import ModelFleet
from pipeline.fleet.watching import Watch


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
    comparisons: tuple[Comparison, ...] = ()
    for index in range(min(rollout.step, len(steps) - 1), len(steps)):
        model = _set_weight(spec, fleet, index=index, weight=steps[index])
        fleet.say(f"{steps[index]} % of the traffic: watching for {settings.step_s:g} s or more")
        with Watch.open(fleet, model, settings, prompts, step=index) as watch:
            finding, reason, seen = watch.observe()
        comparisons = watch.comparisons
        fleet.say(f"{steps[index]} % of the traffic is {finding}: {reason}; {seen.probes} were probes")
        if finding != "healthy":
            model = _take_back(spec, fleet, f"at {steps[index]} % of the traffic: {reason}", comparisons)
            return _result(spec, model, outcome="unhealthy", reason=reason, seen=seen)
    model = fleet.change(
        spec.name, spec.generation, lambda model: with_phase(model, spec.generation, "shift", comparisons=comparisons)
    )
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


def _take_back(spec: RolloutSpec, fleet: Fleet, reason: str, comparisons: tuple[Comparison, ...]) -> ModelFleet:
    """All traffic back on what is serving, at once."""

    def take_back(model: ModelFleet) -> ModelFleet:
        weights = {model.serving.deployment: 100} if model.serving else {}
        return with_phase(
            model.changed(weights=weights), spec.generation, "shift", comparisons=comparisons, **ended("failed", reason)
        )

    return fleet.change(spec.name, spec.generation, take_back)


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
