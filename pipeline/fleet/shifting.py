"""The phase `shift`: moves traffic to the canary in steps, and looks at each whether it deserves more.

`pipeline.fleet.watching` looks. A person may pause the rollout at any time: then nothing moves, and the look goes on.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from pipeline.contracts.rollout import Shadow
from pipeline.contracts.specs import RolloutResult, RolloutSpec
from pipeline.errors import IntegrityError, ReplicaFailed
from pipeline.fleet.analysis.comparison import Comparison
from pipeline.fleet.analysis.judging import figures
from pipeline.fleet.parts import Fleet, Superseded, ended, required_rollout, with_phase
from pipeline.fleet.starting import prepare
from pipeline.fleet.state import Deployment, ModelFleet, said
from pipeline.fleet.watching import Seen, Trial, Watch

Outcome = Literal["healthy", "unhealthy"]
SHADOW = "shadow"
"""Among the rollout's phases once it was looked at as a shadow."""
MAX_RESTART_S = 120.0
"""A trial that goes on waits so long for what serves to answer again."""
HELD_POLL_S = 0.5
"""While the rollout is paused before its first step."""


class Held(Exception):
    """A person has paused the rollout: nothing moves."""


def shift(spec: RolloutSpec, fleet: Fleet) -> RolloutResult:
    """Walks through the recipe's steps from where an earlier attempt stopped."""
    try:
        return _walk(spec, fleet)
    except (ReplicaFailed, IntegrityError) as error:
        reason = str(error)
        fleet.say(f"unhealthy: {reason}")
        model = fleet.change(spec.name, spec.generation, partial(_without_canary, spec.generation, reason))
        return _result(spec, model, outcome="unhealthy", reason=reason)


def _without_canary(generation: int, reason: str, model: ModelFleet) -> ModelFleet:
    """All traffic on what is serving."""
    weights = {model.serving.deployment: 100} if model.serving else {}
    return with_phase(model.changed(weights=weights, shadow=0), generation, "shift", **ended("failed", reason))


def _walk(spec: RolloutSpec, fleet: Fleet) -> RolloutResult:
    model = fleet.current(spec.name, spec.generation)
    rollout = required_rollout(model, spec.generation)
    if rollout.outcome == "failed":
        return _result(spec, model, outcome="unhealthy", reason=rollout.reason)
    if model.canary is None or "shift" in rollout.phases:
        return _result(spec, model, outcome="healthy", reason="all traffic is on it already")
    registered = fleet.registry.get(spec.name, rollout.version)
    # A trial that is under way is no less needed because the stack was restarted, and replicas take a while to answer.
    wait_s = min(registered.recipe.rollout.ready_timeout_s, MAX_RESTART_S) if rollout.watches else 0.0
    at_once = _goes_at_once(fleet, model, wait_s)
    steps = (100,) if at_once else registered.recipe.rollout.steps
    trial = Trial.of(fleet, registered, watch=rollout.watches + 1)
    index = min(rollout.step, len(steps) - 1)
    shadow = trial.settings.shadow
    is_new = SHADOW not in rollout.phases and not model.weights.get(model.canary.deployment)
    if shadow and is_new and not at_once:
        seen = _look_at_shadow(spec, fleet, trial, shadow)
        if seen.finding != "healthy":
            return _result(spec, fleet.files.get(spec.name), outcome="unhealthy", reason=seen.reason, seen=seen)
    _first_weight(spec, fleet, index=index, weight=steps[index])
    while True:
        fleet.say(f"{steps[index]} % of the traffic: watching for {trial.settings.step_s:g} s or so")
        seen = _look(spec, fleet, trial, index)
        fleet.say(f"{steps[index]} % of the traffic is {seen.finding}: {seen.reason}; {_who_asked(seen)}")
        if seen.finding != "healthy":
            model = fleet.files.get(spec.name)
            return _result(spec, model, outcome="unhealthy", reason=seen.reason, seen=seen)
        try:
            if index + 1 == len(steps):
                model = fleet.change(spec.name, spec.generation, _finished(spec.generation, seen.comparisons))
                return _result(spec, model, outcome="healthy", reason=seen.reason, seen=seen)
            _set_weight(spec, fleet, index=index + 1, weight=steps[index + 1])
            index += 1
        except Held:
            continue


def _look_at_shadow(spec: RolloutSpec, fleet: Fleet, trial: Trial, shadow: Shadow) -> Seen:
    """Copies of clients' requests go to the canary, and its answers are thrown away. Done once a rollout."""

    def mirror(model: ModelFleet) -> ModelFleet:
        if model.canary is None:
            raise Superseded
        if required_rollout(model, spec.generation).paused and model.shadow != shadow.percent:
            raise Held
        return model.changed(shadow=shadow.percent)

    _once_free(spec, fleet, lambda: fleet.change(spec.name, spec.generation, mirror))
    fleet.say(f"copies of {shadow.percent} % of the traffic: watching for {shadow.seconds:g} s or so")
    seen = _look(spec, fleet, replace(trial, settings=trial.settings.model_copy(update={"step_s": shadow.seconds})), 0)
    fleet.say(f"as a shadow it is {seen.finding}: {seen.reason}; {_who_asked(seen)}")
    if seen.finding == "healthy":
        fleet.change(
            spec.name, spec.generation, lambda model: with_phase(model.changed(shadow=0), spec.generation, SHADOW)
        )
    return seen


def _look(spec: RolloutSpec, fleet: Fleet, trial: Trial, index: int) -> Seen:
    """One step, for as long as the rollout is paused. A bad canary loses its traffic before anything else is done."""
    told = -math.inf

    def held() -> bool:
        nonlocal told
        paused = fleet.paused(spec.name, spec.generation)
        if paused and time.monotonic() - told > trial.settings.step_s:
            fleet.say(f"paused {said(paused)}; the weights stay, the watch goes on")
            told = time.monotonic()
        return paused is not None

    with Watch.open(fleet, _begin_watch(spec, fleet), trial, step=index) as watch:
        seen = watch.observe(held)
        if seen.finding != "healthy":
            place = "as a shadow" if watch.model.shadow else f"at {watch.evidence.weight} % of the traffic"
            _take_back(spec, fleet, f"{place}: {seen.reason}", seen)
    return seen


def _begin_watch(spec: RolloutSpec, fleet: Fleet) -> ModelFleet:
    """Numbers the watch, which has a share of the false alarms by its number."""

    def count(model: ModelFleet) -> ModelFleet:
        rollout = required_rollout(model, spec.generation)
        return model.with_rollout(rollout.model_copy(update={"watches": rollout.watches + 1}))

    return fleet.change(spec.name, spec.generation, count)


def _who_asked(seen: Seen) -> str:
    """Where clients were too few, that probes filled up."""
    clients, probes = seen.evidence.client_requests, seen.evidence.probes
    return f"clients asked the canary {clients} times, probes filled up with {probes}"


def _first_weight(spec: RolloutSpec, fleet: Fleet, *, index: int, weight: int) -> ModelFleet:
    """Where the steps begin, once nobody holds the rollout. A weight that is set already is no move."""
    return _once_free(spec, fleet, lambda: _set_weight(spec, fleet, index=index, weight=weight))


def _once_free(spec: RolloutSpec, fleet: Fleet, move: Callable[[], ModelFleet]) -> ModelFleet:
    """Moves as soon as nobody holds the rollout."""
    told = False
    while True:
        try:
            return move()
        except Held:
            paused = fleet.paused(spec.name, spec.generation)
            if paused and not told:
                fleet.say(f"paused {said(paused)}; the weights stay")
                told = True
            time.sleep(HELD_POLL_S)


def _finished(generation: int, comparisons: tuple[Comparison, ...]) -> Callable[[ModelFleet], ModelFleet]:
    def finish(model: ModelFleet) -> ModelFleet:
        if required_rollout(model, generation).paused:
            raise Held
        return with_phase(model, generation, "shift", comparisons=comparisons)

    return finish


def _goes_at_once(fleet: Fleet, model: ModelFleet, wait_s: float = 0.0) -> bool:
    """The first version has nobody to share with, nor has one whose predecessor is dead; one that served a moment
    ago needs no trial."""
    stable = model.deployment(model.serving.deployment) if model.serving else None
    if stable is None or model.canary is None or _is_dead(fleet, stable, wait_s):
        return True
    return model.previous is not None and model.previous.deployment == model.canary.deployment


def _is_dead(fleet: Fleet, stable: Deployment, wait_s: float) -> bool:
    """Whether not one of its replicas answers, nor does so within `wait_s` while it is kept running."""

    def may_come() -> bool:
        return any(fleet.replicas.alive([replica]) for replica in stable.serving)

    if wait_s:
        fleet.gateway.wait(lambda: fleet.some_healthy(stable) or not may_come(), wait_s)
    return not fleet.some_healthy(stable)


def _set_weight(spec: RolloutSpec, fleet: Fleet, *, index: int, weight: int) -> ModelFleet:
    if fleet.paused(spec.name, spec.generation) is None:
        prepare(fleet, spec.name, weight, generation=spec.generation)

    def move(model: ModelFleet) -> ModelFleet:
        if model.canary is None:
            raise Superseded
        weights = {model.canary.deployment: weight}
        if model.serving:
            weights[model.serving.deployment] = 100 - weight
        rollout = required_rollout(model, spec.generation)
        if rollout.paused and weights != model.weights:
            raise Held
        rollout = rollout.model_copy(update={"step": index})
        return model.changed(weights=weights, shadow=0).with_rollout(rollout)

    return fleet.change(spec.name, spec.generation, move)


def _take_back(spec: RolloutSpec, fleet: Fleet, reason: str, seen: Seen) -> ModelFleet:
    """All traffic back on what is serving, at once."""

    def take_back(model: ModelFleet) -> ModelFleet:
        weights = {model.serving.deployment: 100} if model.serving else {}
        found = {"comparisons": seen.comparisons, **ended("failed", reason)}
        return with_phase(model.changed(weights=weights, shadow=0), spec.generation, "shift", **found)

    return fleet.change(spec.name, spec.generation, take_back)


def _result(
    spec: RolloutSpec, model: ModelFleet, *, outcome: Outcome, reason: str, seen: Seen | None = None
) -> RolloutResult:
    rollout = required_rollout(model, spec.generation)
    return RolloutResult(
        name=spec.name,
        generation=spec.generation,
        phase=spec.phase,
        outcome=outcome,
        reason=reason,
        version=rollout.version,
        previous=rollout.previous,
        observed=figures(seen.evidence, seen.comparisons) if seen else {},
    )
