"""From the user's recipe file to a checked Recipe: finding it, reading it, overriding fields, explaining what is wrong.

    path = resolve_recipe("banking77", home_path)            # a path, or the name of a known recipe
    fields = apply_overrides(load_recipe(path), parse_overrides(["finetune.epochs=2"]))
    recipe = check_recipe(fields)

Used by `slipway validate`, the trigger form and the release DAG's first task, so that all three say the same.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.contracts.recipe import Recipe
from pipeline.errors import SpecError
from pipeline.settings import ROOT

SUFFIXES = (".yaml", ".yml")
MAX_RECIPE_BYTES = 1 << 20
PATH_FIELDS = ("dataset.uri", "dataset.eval_uri", "base_model.uri", "validation.suite_uri")
"""Dotted keys whose values may be paths, relative to the recipe's folder."""

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def known_recipes(home_path: Path) -> dict[str, Path]:
    """Name to file: the project's recipes, and the user's own, which win over them."""
    folders = (ROOT / "infra" / "recipes", home_path / "recipes")
    return {
        path.stem: path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.suffix in SUFFIXES
    }


def resolve_recipe(name_or_path: str | Path, home_path: Path) -> Path:
    """The file that `name_or_path` means. Relative paths count from here, then from the project's root.

    Raises:
        SpecError: there is none.
    """
    text = str(name_or_path)
    known = known_recipes(home_path)
    if text in known:
        return known[text]
    for path in (Path(text).expanduser().absolute(), ROOT / text):
        if path.is_file():
            return path
    close = difflib.get_close_matches(text, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise SpecError(
        f"no recipe {text!r}: it is neither a file nor one of the known recipes"
        f" ({', '.join(sorted(known)) or 'none'}){hint or '.'} Your own recipes belong in {home_path / 'recipes'}"
    )


def load_recipe(path: Path) -> dict[str, Any]:
    """The fields of a recipe file, unchecked but for the YAML itself; relative paths in it made absolute.

    Raises:
        SpecError: the file is missing, too large, no UTF-8, no YAML, or holds something other than fields.
    """
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise SpecError(f"{path} has {path.stat().st_size:,} bytes; a recipe is a short YAML file")
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise SpecError(f"cannot read the recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"the recipe {path} is no UTF-8 text: {error.reason} at byte {error.start}") from error
    fields = _parse_yaml(text, str(path))
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise SpecError(f"the recipe {path} holds {type(fields).__name__}, expected fields such as `name: my-model`")
    return _anchored(fields, path.absolute().parent)


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """`["finetune.epochs=2", …]` as dotted keys to values, each value read as YAML.

    Raises:
        SpecError: an assignment without `=`, a key given twice, a value that is no YAML.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not key:
            raise SpecError(f"override {assignment!r} is not understood; expected key=value, e.g. finetune.epochs=2")
        if key in overrides:
            raise SpecError(f"override {key} is given twice: {overrides[key]!r} and {text!r}; keep one")
        overrides[key] = _parse_yaml(text, f"override {key}")
    return overrides


def apply_overrides(
    fields: Mapping[str, Any], overrides: Mapping[str, Any], *, folder: Path | None = None
) -> dict[str, Any]:
    """A copy of `fields` with each dotted key of `overrides` set.

    Args:
        folder: what relative paths in the overrides are relative to; the current folder if left out.

    Raises:
        SpecError: a key that no recipe has; the message names what is allowed there.
    """
    changed: dict[str, Any] = _copied(fields)
    for key, value in overrides.items():
        _check_key(key)
        *parents, last = key.split(".")
        place = changed
        for parent in parents:
            if not isinstance(place.get(parent), dict):
                place[parent] = {}
            place = place[parent]
        place[last] = _absolute(key, value, folder or Path.cwd())
    return changed


def check_recipe(fields: Mapping[str, Any]) -> Recipe:
    """The recipe with every default filled in.

    Raises:
        SpecError: one line for each problem: field, value, what is allowed.
    """
    from croniter import croniter

    try:
        recipe = Recipe.model_validate(dict(fields))
    except ValidationError as error:
        problems = [_explain(dict(problem)) for problem in error.errors(include_url=False)]
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise SpecError(f"the recipe has {count}:\n" + "\n".join(f"  {line}" for line in problems)) from error
    if recipe.schedule is not None and not croniter.is_valid(recipe.schedule):
        raise SpecError(
            f"the recipe has 1 problem:\n  schedule is {recipe.schedule!r}, which is no cron expression; expected"
            ' five fields, such as "0 3 * * *" for three o\'clock every night, or @daily'
        )
    return recipe


def is_hub_id(uri: str) -> bool:
    """Whether a base model's `uri` names a model on the hub and not a folder: no scheme, no leading dot or slash."""
    return bool(HUB_ID.match(uri))


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a field given twice is an error, since one of the two values would be lost silently.

    What looks like a date stays text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  the base class declares it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                raise yaml.MarkedYAMLError(problem=f"field {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _parse_yaml(text: str, what: str) -> Any:
    try:
        value = yaml.load(text, Loader=_StrictLoader)
        json.dumps(value, allow_nan=False, sort_keys=True)
        return value
    except TypeError as error:
        raise SpecError(f"{what} holds something else than text, numbers, lists and fields: {error}") from error
    except RecursionError as error:
        raise SpecError(f"{what} is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise SpecError(f"{what} is not valid YAML{place}: {reason}") from error


def _copied(value: Any) -> Any:
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _anchored(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`fields` with the paths among PATH_FIELDS made absolute."""
    anchored: dict[str, Any] = _copied(fields)
    for key in PATH_FIELDS:
        section, name = key.split(".")
        place = anchored.get(section)
        if isinstance(place, dict) and name in place:
            place[name] = _absolute(key, place[name], folder)
    _anchor_choices(anchored, folder)
    return anchored


def _anchor_choices(fields: dict[str, Any], folder: Path) -> None:
    """The same for the paths among which a search chooses."""
    search = fields.get("search")
    space = search.get("space") if isinstance(search, dict) else None
    for key, dimension in space.items() if isinstance(space, dict) else ():
        if isinstance(dimension, dict) and isinstance(dimension.get("choice"), list):
            dimension["choice"] = [_absolute(key, value, folder) for value in dimension["choice"]]


def _absolute(key: str, value: Any, folder: Path) -> Any:
    """`value` of the field `key`, made absolute if it is a relative path."""
    if key not in PATH_FIELDS or not isinstance(value, str) or not value or "://" in value:
        return value
    if key == "base_model.uri" and is_hub_id(value):
        return value
    return str((folder / Path(value).expanduser()).resolve())


def _check_key(key: str) -> None:
    """Refuses a dotted key that no recipe has."""
    model: type[BaseModel] | None = Recipe
    reached: list[str] = []
    for name in key.split("."):
        at = ".".join(reached)
        if model is None:
            raise SpecError(f"override {key!r}: {at} is a single value, it has no field {name!r}; set {at} itself")
        if name not in model.model_fields:
            raise SpecError(f"override {key!r}: {_unknown(name, at, model)}")
        model = _model_of(model.model_fields[name].annotation)
        reached.append(name)


def _unknown(name: str, at: str, model: type[BaseModel]) -> str:
    close = difflib.get_close_matches(name, model.model_fields, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"{at or 'a recipe'} has no field {name!r}.{hint} Allowed here: {', '.join(model.model_fields)}"


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The model behind an annotation such as `InitModel | None`; None for a plain value."""
    for candidate in _alternatives(annotation):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _alternatives(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in (Union, UnionType):
        yield from get_args(annotation)
    else:
        yield annotation


def _explain(problem: dict[str, Any]) -> str:
    """One problem that pydantic found, in the recipe's own terms."""
    location: tuple[int | str, ...] = problem["loc"]
    at = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".") or "recipe"
    if problem["type"] == "extra_forbidden":
        *parents, name = location
        model = _model_at(parents)
        return f"{at}: {_unknown(str(name), '.'.join(map(str, parents)), model)}" if model else f"{at}: unknown field"
    if problem["type"] == "missing":
        return f"{at}: missing; every recipe needs it"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{at}: {message}"
    return f"{at}: {_shortened(problem['input'])} is not allowed; {message[:1].lower()}{message[1:]}"


def _model_at(location: Sequence[int | str]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = Recipe
    for part in location:
        field = model.model_fields.get(str(part)) if model else None
        model = _model_of(field.annotation) if field else None
    return model


def _shortened(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"
