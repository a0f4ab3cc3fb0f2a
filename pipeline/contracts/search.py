"""The recipe's `search` section: which fields vary, between which values, and how the best of them are looked for."""

import math
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

from pipeline.contracts.base import Contract

Objective = Literal["eval.exact_match", "eval.token_f1", "eval.loss", "train_loss"]
MAXIMIZED = ("eval.exact_match", "eval.token_f1")
INSIDE = 0.381966
"""A place within a range that is no whole number, at which a field must take its values, too."""


class Dimension(Contract):
    """The values that a field may take, in one of four forms."""

    uniform: tuple[float, float] | None = None
    """Any number from the first to the second."""
    log: tuple[float, float] | None = None
    """The same, with each order of magnitude as likely as the next: for learning rates."""
    integer: tuple[int, int] | None = None
    """A whole number, both ends included."""
    choice: tuple[Any, ...] | None = None
    """One of the listed values, in no order."""
    step: Annotated[float, Field(gt=0)] | None = None
    """With `uniform` or `integer`: the first value and every `step` after it."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = [name for name in ("uniform", "log", "integer", "choice") if getattr(self, name) is not None]
        if len(forms) != 1:
            raise ValueError(
                f"give exactly one of uniform, log, integer and choice, not {' and '.join(forms) or 'none of them'}:"
                " for example {log: [1.0e-4, 1.0e-2]}"
            )
        if self.choice is not None:
            self._check_choice(self.choice)
        else:
            self._check_range(forms[0], *self.ends)
        return self

    def _check_choice(self, choice: tuple[Any, ...]) -> None:
        if self.step is not None:
            raise ValueError("step has no meaning with choice: leave it out")
        if not choice:
            raise ValueError("choice is empty: list the values to try")
        if any(value in choice[:place] for place, value in enumerate(choice)):
            raise ValueError(f"choice {list(choice)} lists a value twice")

    def _check_range(self, form: str, low: float, high: float) -> None:
        if low >= high:
            raise ValueError(f"{form} [{low:g}, {high:g}] is empty: the first number must be below the second")
        if form == "log" and low <= 0:
            raise ValueError(f"log [{low:g}, {high:g}] must begin above 0")
        if self.step is not None and form == "log":
            raise ValueError("step has no meaning with log: leave it out")
        if self.step is not None and form == "integer" and self.step % 1:
            raise ValueError(f"step ({self.step:g}) of integer must be a whole number")
        if self.step is not None and self.step > high - low:
            raise ValueError(f"step ({self.step:g}) leaves {form} [{low:g}, {high:g}] one value: lower it")

    @property
    def ends(self) -> tuple[float, float]:
        """The first and the last value of a range."""
        ends = self.uniform or self.log or self.integer
        assert ends is not None
        return ends

    @property
    def listed(self) -> tuple[Any, ...] | None:
        """All values; None where there are infinitely many."""
        if self.choice is not None:
            return self.choice
        if self.integer is None and self.step is None:
            return None
        low, high = self.ends
        step = self.step or 1
        values = [low + place * step for place in range(math.floor((high - low) / step + 1e-9) + 1)]
        return tuple(int(value) for value in values) if self.integer else tuple(round(value, 12) for value in values)

    @property
    def samples(self) -> tuple[Any, ...]:
        """Values at which a field must work, if it is to work at all."""
        if self.choice is not None:
            return self.choice
        low, high = self.ends
        return (low, high) if self.listed else (low, low + INSIDE * (high - low), high)

    def contains(self, value: Any) -> bool:
        if self.listed is not None:
            return value in self.listed
        return isinstance(value, int | float) and self.ends[0] <= value <= self.ends[1]


class Halving(Contract):
    """Successive halving: every trial is trained for a part of its epochs first, and only the best go on to more
    (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning")."""

    rungs: Annotated[int, Field(ge=2, le=5)] = 2
    """How often a trial is trained at most, the last time in full."""
    factor: Annotated[int, Field(ge=2, le=8)] = 3
    """One in so many goes on from each rung, to so many times the epochs."""


class Search(Contract):
    """How to look for the best values of some of a recipe's fields."""

    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    """Dotted field to the values that it may take."""
    trials: Annotated[int, Field(ge=2, le=500)] = 20
    """Sets of values that are tried. Fewer, if there are fewer sets."""
    parallel: Annotated[int, Field(ge=1, le=64)] = 2
    """Trials of a round, which run side by side; each round learns from those before."""
    objective: Objective = "eval.exact_match"
    """What is best: the highest exact_match or token_f1, or the lowest loss, on the held-out rows; or train_loss, the
    lowest at the end of the training, which needs no evaluation."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """How values are chosen: near those that did well (Bergstra et al. 2011, "Tree-structured Parzen Estimator"), at
    random, or every set in turn."""
    pruner: Halving | None = Halving()
    """None: every trial is trained in full, once."""
    seed: int = 0
    """The same seed and the same scores give the same trials."""
    release: bool = True
    """Release the best trial when the search is done."""

    @property
    def maximize(self) -> bool:
        return self.objective in MAXIMIZED

    @property
    def num_sets(self) -> int | None:
        """How many sets of values there are; None for infinitely many."""
        listed = [dimension.listed for dimension in self.space.values()]
        return math.prod(len(values) for values in listed if values) if all(listed) else None

    @property
    def num_trials(self) -> int:
        return min(self.trials, self.num_sets or self.trials)

    @model_validator(mode="after")
    def _grid_is_finite(self) -> Self:
        endless = [key for key, dimension in self.space.items() if dimension.listed is None]
        if self.sampler == "grid" and endless:
            raise ValueError(
                f"sampler is grid, but {', '.join(endless)} has infinitely many values: give it a `step`, or list"
                " them as `choice`"
            )
        return self

    @model_validator(mode="after")
    def _fields_stand_apart(self) -> Self:
        for key in self.space:
            for other in self.space:
                if other.startswith(f"{key}."):
                    raise ValueError(f"space varies {key} and {other}, which is a part of it: vary one of the two")
        return self


def problems(search: Search, recipe: type[BaseModel]) -> Iterator[str]:
    """What is wrong with the fields that `search` varies, and with their values, taken one by one."""
    for key, dimension in search.space.items():
        if not may_vary(key):
            yield (
                f"space varies {key}, which does not change the model that is trained, or changes how it is judged;"
                " expected fields of finetune or base_model, or dataset.uri"
            )
            continue
        try:
            field = field_at(recipe, key)
        except LookupError as error:
            yield f"space varies {key}: {error}"
            continue
        adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]
        for value in dimension.samples:
            try:
                adapter.validate_python(value)
            except ValidationError as error:
                said = error.errors()[0]["msg"].removeprefix("Value error, ")
                yield f"space varies {key}, which cannot be {value!r}: {said[:1].lower()}{said[1:]}"
                break


def may_vary(key: str) -> bool:
    """Whether the field decides which model comes out of a training. All others decide how a model is judged, or what
    becomes of it: scores under different rules are not comparable."""
    return key in ("base_model", "dataset.uri") or key.startswith(("finetune.", "base_model."))


def field_at(model: type[BaseModel], key: str) -> FieldInfo:
    """The field that the dotted `key` names.

    Raises:
        LookupError: there is none; the message says what there is.
    """
    *parents, last = key.split(".")
    place: type[BaseModel] | None = model
    for name in parents:
        place = _section(place.model_fields[name].annotation) if place and name in place.model_fields else None
    if place is None or last not in place.model_fields:
        allowed = f"; allowed here: {', '.join(place.model_fields)}" if place else ""
        raise LookupError(f"there is no such field{allowed}")
    return place.model_fields[last]


def value_at(fields: Mapping[str, Any], key: str) -> Any:
    """The value of the dotted `key` in a recipe's fields; None if it is not given."""
    value: Any = fields
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model behind an annotation such as `InitModel | None`."""
    for candidate in get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
