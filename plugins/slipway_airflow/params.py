"""The fields of the trigger forms. A value that they refuse answers HTTP 400 and starts nothing."""

from typing import Any

from airflow.sdk import Param

from pipeline.contracts.recipe import Recipe

RECIPE_PATTERN = r"^([A-Za-z0-9][A-Za-z0-9_-]*|.*\.ya?ml)$"
DATA_PATTERN = r"^((file://)?/|s3://[^/]+/).+\.(jsonl|parquet)$"
NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
VERSION_PATTERN = r"^[1-9][0-9]*$"


def release_params(recipe: str | None = None) -> dict[str, Param]:
    """Of a release DAG. `recipe` is the value that the form begins with."""
    return {
        "recipe": Param(
            recipe or "demo",
            type="string",
            minLength=1,
            pattern=RECIPE_PATTERN,
            examples=["demo", "banking77"],
            title="Recipe",
            description=(
                "What to release: the name of a recipe in infra/recipes or in $SLIPWAY_HOME/recipes,"
                " or the path of a .yaml file on the server."
            ),
        ),
        "dataset_uri": _data_param("Training data", "the training rows"),
        "eval_uri": _data_param("Held-out data", "the held-out rows"),
        "overrides": Param(
            {},
            type="object",
            title="Overrides",
            description=(
                "Recipe fields to change for this run, by dotted name, for example"
                ' {"finetune.epochs": 2, "promote.policy": "manual"}.'
            ),
            **override_schema(),
        ),
    }


def search_params() -> dict[str, Param]:
    """Of the search DAG: what it searches is what a release would release."""
    return release_params("search")


def rollout_params() -> dict[str, Param]:
    """Of the rollout DAG, for starting it by hand. Runs that the registry starts leave both empty."""
    return {
        "name": Param(
            None,
            type=["null", "string"],
            pattern=NAME_PATTERN,
            title="Registered model",
            description="Whose champion to roll out, as it is called in MLflow. Needed when started by hand.",
        ),
        "version": Param(
            None,
            type=["null", "string"],
            pattern=VERSION_PATTERN,
            title="Version",
            description="Which version is expected to be the champion. Only a note: the alias in MLflow decides.",
        ),
    }


def _data_param(title: str, what: str) -> Param:
    return Param(
        None,
        type=["null", "string"],
        pattern=DATA_PATTERN,
        title=title,
        description=(
            f"Where {what} are, if not where the recipe says: file:///folder/rows.jsonl, an absolute path, or"
            " s3://bucket/rows.parquet. A recipe that generates its data needs both files named to use other data."
        ),
    )


def maintenance_params() -> dict[str, Param]:
    """Of the DAG that clears up."""
    return {
        "keep_days": Param(
            30,
            type="integer",
            minimum=1,
            title="Days",
            description="How many days the records and logs of ended jobs are kept. Artifacts stay for good.",
        )
    }


def override_schema() -> dict[str, Any]:
    """The JSON schema of `overrides`: every dotted field of a recipe with the values that it allows."""
    schema = Recipe.model_json_schema()
    properties: dict[str, Any] = {}
    _add_fields(properties, schema, schema["$defs"], prefix="")
    return {"properties": properties, "additionalProperties": False}


def _add_fields(properties: dict[str, Any], model: dict[str, Any], models: dict[str, Any], *, prefix: str) -> None:
    for name, field in model["properties"].items():
        inner = _inner_model(field, models)
        if inner is None:
            shown = {key: value for key, value in field.items() if key not in ("title", "default")}
            properties[prefix + name] = _resolved(shown, models)
        else:
            properties[prefix + name] = {"type": ["object", "null"]}
            _add_fields(properties, inner, models, prefix=f"{prefix}{name}.")


def _resolved(schema: Any, models: dict[str, Any]) -> Any:
    """The schema with what it refers to in the place of the references."""
    if isinstance(schema, list):
        return [_resolved(item, models) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _resolved(models[schema["$ref"].rpartition("/")[2]], models)
    return {key: _resolved(value, models) for key, value in schema.items()}


def _inner_model(field: dict[str, Any], models: dict[str, Any]) -> dict[str, Any] | None:
    """The model behind a field such as `InitModel | None`; None for a plain value."""
    for alternative in (field, *field.get("anyOf", ()), *field.get("allOf", ())):
        if "$ref" in alternative:
            model: dict[str, Any] = models[alternative["$ref"].rpartition("/")[2]]
            return model
    return None
