"""Draws the values of a trial. The same seed and the same earlier trials give the same values, in whatever order and
however often trials ask: each draw has a random generator of its own, and a study that is made anew from the trials.

    suggest(spec)     # {"finetune.learning_rate": 0.0021, "finetune.epochs": 4}
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from pipeline.contracts.base import canonical_json, sha256_hex
from pipeline.contracts.search import Dimension, Search, value_at
from pipeline.contracts.study import SuggestResult, SuggestSpec, Tried
from pipeline.contracts.trials import round_of
from pipeline.errors import SpecError
from pipeline.recipe_files import apply_overrides, check_recipe

MAX_DRAWS = 300
"""So many draws that a recipe refuses, or that were tried before, and the space holds nothing new worth looking for."""
LEARNED_DRAWS, RANDOM_DRAWS = 20, 100
"""The first are the sampler's, which may insist on what was tried before; the next are at random; then a finite space
is walked through."""
MAX_AT_RANDOM = 10
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}

optuna.logging.set_verbosity(optuna.logging.ERROR)


def suggest(spec: SuggestSpec) -> SuggestResult:
    """The values of trial `spec.number`.

    Trials of its own round are drawn first, in the order of their numbers, as trials that still run.

    Raises:
        SpecError: every set of values that was drawn is refused by the recipe's rules, or was tried before.
    """
    known = list(spec.history)
    found = None
    for number in range(round_of(spec.search, spec.number).start, spec.number + 1):
        found = _draw_new(spec, number, known)
        known.append(Tried(number=number, values=found.values, scores=(), state="running"))
    assert found is not None
    return found


def first_values(search: Search, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Of trial 0, before anything has run: shows that the space holds a recipe that works.

    Raises:
        SpecError: it does not.
    """
    return suggest(SuggestSpec(search=search, recipe=dict(recipe), number=0, history=())).values


def _draw_new(spec: SuggestSpec, number: int, known: Sequence[Tried]) -> SuggestResult:
    tried = {canonical_json(trial.values) for trial in known}
    refusal = ""
    for attempt in range(MAX_DRAWS):
        drawn = _draw(spec, number, known, attempt)
        if drawn is None:
            break
        if canonical_json(drawn.values) in tried:
            refusal = refusal or f"{drawn.values} was tried before"
            continue
        try:
            check_recipe(apply_overrides(spec.recipe, drawn.values))
        except SpecError as error:
            refusal = f"{drawn.values}: {error}"
            continue
        return drawn
    raise SpecError(
        f"search.space holds no further values that the recipe allows (trial {number}); the last that was refused:"
        f" {refusal or 'none, all sets were tried'}. Narrow the space to what works together, widen it, or lower"
        " search.trials"
    )


def _draw(spec: SuggestSpec, number: int, known: Sequence[Tried], attempt: int) -> SuggestResult | None:
    """One draw; None where a grid has no more sets."""
    search = spec.search
    if number == attempt == 0 and (own := own_values(search, spec.recipe)) is not None:
        return SuggestResult(values=own, source="the recipe's own values")
    in_order = 0 if search.sampler == "grid" else RANDOM_DRAWS
    if search.num_sets is not None and attempt >= in_order:
        return _from_grid(search, {canonical_json(trial.values) for trial in known}, attempt - in_order)
    learned = [trial for trial in known if trial.scores]
    seed = int(sha256_hex(canonical_json([search.seed, number, attempt]))[:8], 16)
    knows_little = len(learned) < num_at_random(search)
    at_random = search.sampler == "random" or knows_little or attempt >= LEARNED_DRAWS
    sampler: BaseSampler = (
        RandomSampler(seed=seed) if at_random else TPESampler(seed=seed, n_startup_trials=0, constant_liar=True)
    )
    study = study_of(search, known, sampler)
    drawn = study.ask(distributions(search)).params
    source = "drawn at random" if at_random else f"drawn near the best of {len(learned)} trials"
    return SuggestResult(values=values_of(search, drawn), source=source)


def own_values(search: Search, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the recipe itself says for the fields that vary; None where that is not in the space."""
    resolved = check_recipe(recipe).model_dump(mode="json")
    values = {key: value_at(resolved, key) for key in search.space}
    return values if all(search.space[key].contains(value) for key, value in values.items()) else None


def num_at_random(search: Search) -> int:
    """So many trials with a score there must be before the sampler learns from them."""
    return min(MAX_AT_RANDOM, max(2, search.num_trials // 3))


def _from_grid(search: Search, tried: set[bytes], attempt: int) -> SuggestResult | None:
    """The `attempt`-th set of the grid that is left."""
    keys = list(search.space)
    sets = itertools.product(*(search.space[key].listed or () for key in keys))
    named = (dict(zip(keys, values, strict=True)) for values in sets)
    left = (values for values in named if canonical_json(values) not in tried)
    found = next(itertools.islice(left, attempt, None), None)
    return None if found is None else SuggestResult(values=found, source="the next of the grid")


def study_of(search: Search, trials: Sequence[Tried], sampler: BaseSampler | None = None) -> optuna.Study:
    """Optuna's view of the trials, in memory."""
    study = optuna.create_study(
        direction="maximize" if search.maximize else "minimize", sampler=sampler or RandomSampler(seed=0)
    )
    space = distributions(search)
    for trial in trials:
        if trial.values.keys() != space.keys():
            continue  # it ended before it had values
        study.add_trial(
            optuna.trial.create_trial(
                state=STATES.get(trial.state, TrialState.RUNNING),
                value=trial.scores[-1] if trial.state == "complete" else None,
                params=params_of(search, trial.values),
                distributions=space,
                intermediate_values=dict(enumerate(trial.scores)),
                user_attrs={"number": trial.number},
            )
        )
    return study


def distributions(search: Search) -> dict[str, BaseDistribution]:
    return {key: _distribution(dimension) for key, dimension in search.space.items()}


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.choice is not None:
        return CategoricalDistribution(tuple(range(len(dimension.choice))))
    low, high = dimension.ends
    if dimension.listed is not None:
        # Optuna's ranges end where the last step does.
        low, high = dimension.listed[0], dimension.listed[-1]
    if dimension.integer is not None:
        return IntDistribution(int(low), int(high), step=int(dimension.step or 1))
    return FloatDistribution(low, high, log=dimension.log is not None, step=dimension.step)


def values_of(search: Search, params: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe values from Optuna's: a choice is known there by its place, since it may be anything."""
    return {key: _value(search.space[key], params[key]) for key in search.space}


def params_of(search: Search, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value if (choice := search.space[key].choice) is None else choice.index(value)
        for key, value in values.items()
    }


def _value(dimension: Dimension, param: Any) -> Any:
    if dimension.choice is not None:
        return dimension.choice[param]
    if dimension.listed is not None:
        return min(dimension.listed, key=lambda value: abs(value - param))
    low, high = dimension.ends
    return min(max(float(f"{param:.6g}"), low), high)
