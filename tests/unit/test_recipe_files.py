"""Finding, reading, overriding and checking recipes."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.contracts.recipe import Recipe
from pipeline.errors import SpecError
from pipeline.recipe_files import (
    apply_overrides,
    check_recipe,
    is_hub_id,
    known_recipes,
    load_recipe,
    parse_overrides,
    resolve_recipe,
)

GOOD: dict[str, Any] = {
    "name": "bank",
    "dataset": {"uri": "/data/train.jsonl", "eval_uri": "/data/eval.jsonl"},
    "base_model": {"init": {}},
}


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(fields: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        check_recipe(fields)
    return str(caught.value)


def test_every_shipped_recipe_is_right(tmp_path: Path) -> None:
    """As it stands, before any override (where it needs paths, any will do)."""
    for path in known_recipes(tmp_path).values():
        assert check_recipe(load_recipe(path)).name


def test_paths_in_a_recipe_are_relative_to_its_folder(tmp_path: Path) -> None:
    """Whatever the folder from which it is used; URIs and hub ids stay as they are."""
    path = write(
        tmp_path,
        "name: a\ndataset: {uri: rows/train.jsonl, eval_uri: s3://b/eval.jsonl}\n"
        "base_model: {uri: ./model}\nvalidation: {suite_uri: ../suite.json}\n",
    )

    fields = load_recipe(path)

    assert fields["dataset"] == {"uri": str(tmp_path / "rows/train.jsonl"), "eval_uri": "s3://b/eval.jsonl"}
    assert fields["base_model"]["uri"] == str(tmp_path / "model")
    assert fields["validation"]["suite_uri"] == str(tmp_path.parent / "suite.json")


@pytest.mark.parametrize(("uri", "expected"), [("gpt2", True), ("org/name", True), ("org/name-1.5_b", True)])
def test_a_hub_id_is_told_from_a_path(uri: str, expected: bool) -> None:
    """By its form alone: what lies on the disk must not change a recipe's meaning."""
    assert is_hub_id(uri) is expected


@pytest.mark.parametrize("uri", ["./name", "../x/y", "/abs/olute", "s3://b/m", "file:///m", "a/b/c", ""])
def test_a_path_is_told_from_a_hub_id(uri: str) -> None:
    """A leading dot or slash, a scheme, or more than one slash."""
    assert not is_hub_id(uri)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "line 2, column 1: field 'name' is given twice"),
        ("name: [a\n", "not valid YAML at line"),
        ("name: a\n\tx: 1\n", "not valid YAML at line 2"),
        ("- a\n- b\n", "holds list, expected fields"),
        ("", "holds NoneType, expected fields"),
        ("1: a\n", "holds dict, expected fields"),
        ("name: !!python/object:os.system {}\n", "could not determine a constructor"),
        ("finetune: {epochs: .inf}\n", "is not valid YAML: Out of range float values"),
        ("name: &a [*a]\n", "is not valid YAML"),
        ("name: !!set {a, b}\n", "holds something else than text, numbers, lists and fields"),
        ("name: !!binary aGk=\n", "holds something else than text, numbers, lists and fields"),
        ("? [a, b]\n: c\n", "unhashable key"),
        ("a: " + "[" * 5000, "is nested too deeply"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_the_place(text: str, message: str, tmp_path: Path) -> None:
    """Nothing is lost silently, and nothing in it is executed."""
    with pytest.raises(SpecError) as caught:
        load_recipe(write(tmp_path, text))
    assert message in str(caught.value)


def test_a_date_in_a_recipe_is_text(tmp_path: Path) -> None:
    """No field is a date, and a name may look like one."""
    assert load_recipe(write(tmp_path, "name: 2026-11-20\n")) == {"name": "2026-11-20"}


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Missing, a folder, no text, or far too long."""
    (tmp_path / "binary.yaml").write_bytes(b"name: \xff\xfe")
    (tmp_path / "large.yaml").write_bytes(b"#" * 2_000_000)
    for name, message in {
        "gone.yaml": "No such file",
        "": "Is a directory",
        "binary.yaml": "no UTF-8 text: invalid start byte at byte 6",
        "large.yaml": "2,000,000 bytes",
    }.items():
        with pytest.raises(SpecError, match=message):
            load_recipe(tmp_path / name)


def test_the_users_own_recipe_wins_over_a_shipped_one(tmp_path: Path) -> None:
    """A name means the file in the state folder first."""
    (tmp_path / "recipes").mkdir()
    own = tmp_path / "recipes" / "demo.yaml"
    own.write_text("name: own\n")

    assert resolve_recipe("demo", tmp_path) == own
    assert resolve_recipe(own, tmp_path) == own
    assert resolve_recipe("infra/recipes/demo.yaml", tmp_path).name == "demo.yaml"


def test_an_unknown_name_says_what_is_known(tmp_path: Path) -> None:
    """With the nearest one, and where to put one's own."""
    with pytest.raises(SpecError, match=r"no recipe 'dmo'.*banking77, demo.*did you mean demo\?.*recipes"):
        resolve_recipe("dmo", tmp_path)


def test_overrides_are_read_as_yaml() -> None:
    """So lists, numbers, null and text need no other syntax."""
    assert parse_overrides(
        ["finetune.epochs=2.5", "compress.ladder=[w8a8, none]", "dataset.generate=null", "name=x"]
    ) == {
        "finetune.epochs": 2.5,
        "compress.ladder": ["w8a8", "none"],
        "dataset.generate": None,
        "name": "x",
    }


@pytest.mark.parametrize("assignments", [["epochs"], ["=2"], ["name=a", "name=b"], ["name=[1"]])
def test_an_override_that_is_not_understood_is_refused(assignments: list[str]) -> None:
    """Naming it."""
    with pytest.raises(SpecError, match="override"):
        parse_overrides(assignments)


def test_overrides_change_a_copy_and_reach_fields_that_the_recipe_leaves_out() -> None:
    """Sections that are missing or null are made."""
    fields = {**GOOD, "finetune": None}

    changed = apply_overrides(fields, {"finetune.parallelism.zero": 0, "base_model.init.num_layers": 3})

    assert changed["finetune"] == {"parallelism": {"zero": 0}}
    assert changed["base_model"]["init"] == {"num_layers": 3}
    assert fields == {**GOOD, "finetune": None}
    assert GOOD["base_model"] == {"init": {}}


def test_relative_paths_in_overrides_count_from_the_given_folder(tmp_path: Path) -> None:
    """The command line gives the current one."""
    changed = apply_overrides(GOOD, {"dataset.uri": "x.jsonl", "base_model.uri": "org/name"}, folder=tmp_path)

    assert changed["dataset"]["uri"] == str(tmp_path / "x.jsonl")
    assert changed["base_model"]["uri"] == "org/name"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("finetune.epoch", "finetune has no field 'epoch'. Did you mean epochs? Allowed here: method, lora,"),
        ("fine.epochs", "a recipe has no field 'fine'. Did you mean finetune? Allowed here: name,"),
        ("finetune.epochs.x", "finetune.epochs is a single value, it has no field 'x'; set finetune.epochs itself"),
        ("base_model.init.layers", "base_model.init has no field 'layers'."),
    ],
)
def test_an_override_of_an_unknown_field_names_what_is_allowed_there(key: str, message: str) -> None:
    """With the nearest name first."""
    with pytest.raises(SpecError) as caught:
        apply_overrides(GOOD, {key: 1})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"name": "No Spaces"}, "name: 'No Spaces' is not allowed; string should match"),
        ({"finetune.epochs": 0}, "finetune.epochs: 0 is not allowed; input should be greater than 0"),
        (
            {"finetune.batch_size": "many"},
            "finetune.batch_size: 'many' is not allowed; input should be a valid integer",
        ),
        (
            {"finetune.precision": "fp8"},
            "finetune.precision: 'fp8' is not allowed; input should be 'fp32', 'bf16' or 'fp16'",
        ),
        ({"finetune.batch_size": 31}, "finetune: batch_size (31) must be divisible by nodes (2)"),
        ({"finetune.learning_rate": float("nan")}, "finetune.learning_rate: nan is not allowed"),
        ({"rollout.keep_warm_s": float("inf")}, "rollout.keep_warm_s: inf is not allowed; input should be a finite"),
        (
            {"rollout.steps": [5, 500]},
            "rollout.steps[1]: 500 is not allowed; input should be less than or equal to 100",
        ),
        ({"compress.ladder": ["none", "w8a8"]}, "compress: `none` always passes"),
        ({"base_model.uri": "org/name"}, "base_model: needs exactly one of `uri` and `init`"),
        (
            {"finetune.parallelism": {"foo": 2}},
            "finetune.parallelism has no field 'foo'. Allowed here: auto, zero, tensor, pipeline, sequence",
        ),
        (
            {"finetune.parallelism": "foo"},
            "finetune.parallelism: there is no parallelism 'foo': say `parallelism: auto`",
        ),
        ({"dataset": None}, "dataset: None is not allowed"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(overrides: dict[str, Any], line: str) -> None:
    """Field, value, rule; one line each."""
    assert line in problems(apply_overrides(GOOD, overrides))


def test_all_problems_are_told_at_once() -> None:
    """Nobody wants to find them one by one."""
    told = problems({"name": "A", "dataset": {"url": "x"}, "finetune": {"epoch": 1, "epochs": -1}})

    assert told.startswith("the recipe has 5 problems:\n")
    for start in ("name: 'A'", "dataset.url: dataset has no field 'url'. Did you mean uri?", "base_model: missing"):
        assert f"\n  {start}" in told
    assert "finetune.epoch: finetune has no field 'epoch'. Did you mean epochs?" in told


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*Recipe.model_fields, "other"]), json_values))
def test_whatever_a_recipe_holds_it_is_accepted_or_explained(fields: dict[str, Any]) -> None:
    """Never a crash, never an empty explanation."""
    try:
        check_recipe(fields)
    except SpecError as error:
        assert "\n  " in str(error)  # noqa: PT017  both ends are right


@given(st.text(max_size=30))
def test_whatever_an_override_holds_it_is_read_or_refused(text: str) -> None:
    """Never a crash."""
    try:
        assert list(parse_overrides([f"name={text}"])) == ["name"]
    except SpecError as error:
        assert "override name" in str(error)  # noqa: PT017  both ends are right


@pytest.mark.parametrize("schedule", ["0 3 * * *", "*/2 * * * 1-5", "@daily"])
def test_a_schedule_is_a_cron_expression(schedule: str) -> None:
    """Five fields, or a word for them."""
    assert check_recipe({**GOOD, "schedule": schedule}).schedule == schedule


@pytest.mark.parametrize("schedule", ["banana", "99 99 * * *", "0 3 * *", ""])
def test_a_schedule_that_no_clock_reaches_is_refused(schedule: str) -> None:
    """Airflow would only show its DAG as broken."""
    assert f"schedule is {schedule!r}, which is no cron expression" in problems({**GOOD, "schedule": schedule})
