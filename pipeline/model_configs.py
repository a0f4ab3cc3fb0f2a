"""The sizes of a model that a recipe names, from its config.json alone, wherever it lies: no weights are fetched."""

import json
from pathlib import Path

from pipeline import artifacts
from pipeline.artifacts.uris import local_path
from pipeline.contracts.base import FolderRef, ModelRef
from pipeline.contracts.recipe import BaseModelSource, Recipe
from pipeline.contracts.specs import HubModel, PinnedModel
from pipeline.errors import SpecError, TransientError
from pipeline.inputs import REGISTERED
from pipeline.planning import shapes
from pipeline.planning.shapes import ModelShape
from pipeline.recipe_files import is_hub_id

CONFIG = "config.json"
HUB_TIMEOUT_S = 10.0


def is_near(uri: str | None) -> bool:
    """Whether a model's sizes can be read without a network: a new model, or a folder of this machine."""
    return uri is None or not (uri.startswith((REGISTERED, "s3://")) or is_hub_id(uri))


def base_shape(source: BaseModelSource) -> ModelShape:
    """Of the recipe's base model.

    Raises:
        UnknownShape: a kind of model that cannot be planned.
        SpecError: there is no such model.
        TransientError: the hub or the store does not answer.
    """
    if source.init is not None:
        return shapes.from_init(source.init)
    return named_shape(str(source.uri), source.revision)


def named_shape(uri: str, revision: str | None = None) -> ModelShape:
    """Of a folder (path, file:///… or s3://…) or a hub id. It raises what `base_shape` does, and SpecError for a
    registered model, whose folder a release's first step alone looks up."""
    if uri.startswith(REGISTERED):
        raise SpecError(
            f"the sizes of {uri} are known to a release alone, which asks MLflow: to plan it here, name the model's"
            " folder, as in --set finetune.distill.teacher=/models/large"
        )
    if is_hub_id(uri):
        return _hub_shape(uri, revision)
    folder = local_path(uri)
    return _stored_shape(uri, CONFIG) if folder is None else _local_shape(folder / CONFIG)


def pinned_shape(model: PinnedModel) -> ModelShape:
    """Of a pinned teacher. It raises what `base_shape` does."""
    if isinstance(model, HubModel):
        return named_shape(model.name, model.revision)
    if isinstance(model, FolderRef):
        return named_shape(model.uri)
    assert isinstance(model, ModelRef)
    manifest = artifacts.find_manifest(model.artifact.uri)
    if manifest is None:
        raise SpecError(f"the teacher's artifact {model.artifact.uri} does not exist any more: name another version")
    parts = [part for part in (manifest.root, model.path, CONFIG) if part != "."]
    return _stored_shape(model.artifact.uri, "/".join(parts))


def recipe_shapes(recipe: Recipe) -> tuple[ModelShape, ModelShape | None]:
    """Of the base model, and of the teacher if there is one, as the recipe names them."""
    distill = recipe.finetune.distill
    return base_shape(recipe.base_model), named_shape(distill.teacher) if distill else None


def _stored_shape(uri: str, name: str) -> ModelShape:
    data = artifacts.open_store(uri).read(name)
    if data is None:
        raise SpecError(f"{uri}/{name} does not exist: a model's folder has a {CONFIG}")
    return _shape(data, f"{uri}/{name}")


def _local_shape(path: Path) -> ModelShape:
    try:
        return _shape(path.read_bytes(), str(path))
    except OSError as error:
        raise SpecError(f"{path} cannot be read ({error.strerror}): a model's folder has a {CONFIG}") from error


def _shape(data: bytes, source: str) -> ModelShape:
    try:
        config = json.loads(data)
    except ValueError as error:
        raise shapes.UnknownShape(f"{source} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise shapes.UnknownShape(f"{source} holds {type(config).__name__}, expected an object")
    return shapes.from_config(config, source)


def _hub_shape(model_id: str, revision: str | None) -> ModelShape:
    """From the hub client's cache, or in one request: a hub that does not answer is not waited for."""
    import httpx2  # the hub's client takes a moment to import, and most recipes need none
    import huggingface_hub
    from huggingface_hub import errors

    cached = huggingface_hub.try_to_load_from_cache(model_id, CONFIG, revision=revision)
    if isinstance(cached, str):
        return _local_shape(Path(cached))
    url = huggingface_hub.hf_hub_url(model_id, CONFIG, revision=revision)
    try:
        headers = {"authorization": f"Bearer {token}"} if (token := huggingface_hub.get_token()) else {}
        answer = huggingface_hub.get_session().get(url, headers=headers, timeout=HUB_TIMEOUT_S, follow_redirects=True)
        huggingface_hub.hf_raise_for_status(answer)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise SpecError(
            f"the hub has no {CONFIG} of {model_id!r} (revision {revision or 'main'}) that this machine may read"
        ) from error
    except (httpx2.HTTPError, OSError) as error:
        raise TransientError(f"cannot ask the hub for {model_id}/{CONFIG}: {error}") from error
    return _shape(answer.content, f"{model_id}/{CONFIG}")
