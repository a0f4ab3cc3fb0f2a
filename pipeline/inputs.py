"""Pins what a recipe names: files and folders by digest, hub models by commit, generated data as an artifact."""

import re
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pipeline import artifacts
from pipeline.artifacts.digests import file_digest, folder_digest
from pipeline.artifacts.fetching import download_folder
from pipeline.artifacts.uris import file_uri, local_path
from pipeline.contracts.base import FileRef, FolderRef, Result, step_key
from pipeline.contracts.manifest import Manifest
from pipeline.contracts.recipe import BaseModelSource, Recipe
from pipeline.contracts.specs import GenerateSpec, HubModel, PinnedModel
from pipeline.data import generate
from pipeline.errors import IntegrityError, SpecError, TransientError
from pipeline.job import Job
from pipeline.provenance import draft_manifest
from pipeline.recipe_files import is_hub_id
from pipeline.registry.connection import required_tracking_uri
from pipeline.registry.models import finetuned_model

COMMIT = re.compile(r"^[0-9a-f]{40}$")
REGISTERED = "models:/"
REGISTERED_MODEL = re.compile(
    r"^models:/(?P<name>[a-z0-9][a-z0-9-]{0,62})(/(?P<version>[1-9][0-9]*)|@(?P<alias>[a-z][a-z0-9_-]*))$"
)
DATA_SUFFIXES = (".jsonl", ".parquet")


def pin_file(uri: str, field: str, cache_path: Path, *, suffixes: tuple[str, ...]) -> FileRef:
    """The digest and size of a file as it is now.

    Args:
        field: the recipe's field that names it, for messages.

    Raises:
        SpecError: it is missing, no file, unreadable, or of another kind than `suffixes`.
    """
    if not uri.endswith(suffixes):
        raise SpecError(f"{field} is {uri}, expected a file that ends in {' or '.join(suffixes)}")
    path = _local(uri, field)
    if path is None:
        return _pin_remote_file(uri, field, cache_path)
    check_file(path, field)
    try:
        return FileRef(uri=file_uri(path), digest=file_digest(path), size_bytes=path.stat().st_size)
    except PermissionError as error:
        raise SpecError(f"{field}: {path} cannot be read by this user; change its permissions") from error


def check_local_paths(recipe: Recipe) -> None:
    """Refuses what the recipe names on this machine and is not there; the release's first step looks at the rest.

    Raises:
        SpecError: names the field and the path.
    """
    files = {
        "dataset.uri": recipe.dataset.uri,
        "dataset.eval_uri": recipe.dataset.eval_uri,
        "validation.suite_uri": recipe.validation.suite_uri,
    }
    for field, uri in files.items():
        if uri and (path := _local(uri, field)) is not None:
            check_file(path, field)
    models = {
        "base_model.uri": recipe.base_model.uri,
        "finetune.distill.teacher": recipe.finetune.distill and recipe.finetune.distill.teacher,
    }
    for field, model in models.items():
        if not model:
            continue
        if model.startswith(REGISTERED):
            registered_version(model, field)
        elif not is_hub_id(model) and (path := _local(model, field)) is not None:
            _check_model_folder(path, model, field)


def check_file(path: Path, field: str) -> None:
    """Refuses a path that is no file for this user.

    Raises:
        SpecError: names the field and the path.
    """
    try:
        if path.is_file():
            return
        kind = "is a folder" if path.is_dir() else "does not exist"
    except OSError as error:
        raise SpecError(f"{field}: {path} cannot be looked at ({error.strerror}); correct the path") from error
    raise SpecError(f"{field}: {path} {kind}; correct the path in the recipe, or put the file there")


def pin_base_model(source: BaseModelSource, cache_path: Path) -> tuple[BaseModelSource, FolderRef | None]:
    """A folder by its digest; a hub id by its commit, which becomes the source's `revision`."""
    if source.uri is None:
        return source, None
    if is_hub_id(source.uri):
        commit = _hub_commit(source.uri, source.revision, "base_model.uri")
        return source.model_copy(update={"revision": commit}), None
    if source.revision is not None:
        raise SpecError(f"base_model.revision is {source.revision!r}, but {source.uri} is a folder; leave it out")
    return source, _pin_model_folder(source.uri, "base_model.uri", cache_path)


def pin_teacher(uri: str, job: Job) -> PinnedModel:
    """A folder by its digest, a hub id by its commit, a registered version by its unquantized model's artifact.

    Raises:
        SpecError: there is no such model.
        DataError: a version that no release registered.
        TransientError: MLflow, the store or the hub cannot be reached.
    """
    field = "finetune.distill.teacher"
    if uri.startswith(REGISTERED):
        name, version = registered_version(uri, field)
        return finetuned_model(required_tracking_uri(job), name, version)
    if is_hub_id(uri):
        return HubModel(name=uri, revision=_hub_commit(uri, None, field))
    return _pin_model_folder(uri, field, job.settings.cache_path)


def registered_version(uri: str, field: str) -> tuple[str, str]:
    """Name, and `@alias` or version, of models:/NAME@ALIAS or models:/NAME/VERSION."""
    found = REGISTERED_MODEL.match(uri)
    if found is None:
        raise SpecError(f"{field} is {uri!r}, expected models:/NAME@ALIAS or models:/NAME/VERSION")
    return found["name"], found["version"] or f"@{found['alias']}"


def _pin_model_folder(uri: str, field: str, cache_path: Path) -> FolderRef:
    path = _local(uri, field)
    if path is None:
        return _pin_remote_folder(uri, field, cache_path)
    _check_model_folder(path, uri, field)
    return FolderRef(uri=file_uri(path), digest=folder_digest(path))


def pin_generated(spec: GenerateSpec, job: Job) -> tuple[FileRef, FileRef]:
    """Training and held-out rows of the generated data set, as an artifact of its own.

    It is found again by its settings, so that later releases read the same files.
    """
    key = step_key("generate", 1, spec)
    maker = Job(step="generate", key=key, out_uri=f"{job.store_uri}/generate/{key}", settings=job.settings)
    with maker.exclusive():
        manifest = artifacts.find_manifest(maker.out_uri) or _generate(spec, maker)
    entries = {entry.path: entry for entry in manifest.files}
    train, held_out = (
        FileRef(
            uri=f"{maker.out_uri}/{manifest.root}/{name}",
            digest=entries[name].sha256,
            size_bytes=entries[name].size_bytes,
        )
        for name in ("train.jsonl", "eval.jsonl")
    )
    return train, held_out


def _generate(spec: GenerateSpec, maker: Job) -> Manifest:
    started_at, started = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    maker.clear_staging()
    generate.support_intents(
        train_rows=spec.settings.train_rows,
        eval_rows=spec.settings.eval_rows,
        seed=spec.settings.seed,
        preferences=spec.settings.kind == "support-preferences",
        train_path=maker.staging_path / "train.jsonl",
        eval_path=maker.staging_path / "eval.jsonl",
    )
    draft = draft_manifest(maker, spec, Result(), started_at=started_at, duration_s=time.monotonic() - started)
    manifest = artifacts.publish(maker.out_uri, maker.staging_path, draft)
    maker.clear_work()
    return manifest


def _local(uri: str, field: str) -> Path | None:
    try:
        return local_path(uri)
    except SpecError as error:
        raise SpecError(f"{field}: {error}") from error


def _pin_remote_file(uri: str, field: str, cache_path: Path) -> FileRef:
    base, _, name = uri.rpartition("/")
    store = artifacts.open_store(base)
    sizes: list[int] = []

    def download(folder: Path) -> str:
        try:
            store.download(name, folder / name)
        except IntegrityError as error:
            raise SpecError(f"{field}: {uri} does not exist; correct it in the recipe, or upload the file") from error
        sizes.append((folder / name).stat().st_size)
        return file_digest(folder / name)

    digest = _into_cache(cache_path / "files", download)
    return FileRef(uri=uri, digest=digest, size_bytes=sizes[0])


def _pin_remote_folder(uri: str, field: str, cache_path: Path) -> FolderRef:
    def download(folder: Path) -> str:
        download_folder(uri, folder)
        _check_model_folder(folder, uri, field)
        return folder_digest(folder)

    return FolderRef(uri=uri, digest=_into_cache(cache_path / "folders", download))


def _into_cache(folder: Path, download: Callable[[Path], str]) -> str:
    """Downloads into a temporary folder that is then named after the digest which `download` returns."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pin-", ignore_cleanup_errors=True) as temporary:
        content = Path(temporary) / "content"
        content.mkdir()
        digest = download(content)
        if not (folder / digest).exists():
            content.rename(folder / digest)
    return digest


def _check_model_folder(path: Path, uri: str, field: str) -> None:
    try:
        is_model = (path / "config.json").is_file() and any(path.glob("*.safetensors"))
    except OSError as error:
        raise SpecError(f"{field}: {uri} cannot be looked at ({error.strerror}); correct the path") from error
    if not is_model:
        raise SpecError(
            f"{field}: {uri} holds no model: config.json and *.safetensors are expected in it;"
            " give a folder in Hugging Face form, or a hub id such as org/name"
        )


def _hub_commit(model_id: str, revision: str | None, field: str) -> str:
    """The commit that `revision` (by default the main branch) of a hub model stands at."""
    if revision and COMMIT.match(revision):
        return revision
    import httpx2  # the hub's client takes a moment to import, and most recipes need none
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return str(HfApi().model_info(model_id, revision=revision, timeout=20).sha)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise SpecError(
            f"{field}: the hub has no model {model_id!r} that this machine may read;"
            f" correct it, log in with `hf auth login`, or write ./{model_id} if a folder is meant"
        ) from error
    except RevisionNotFoundError as error:
        raise SpecError(f"{field}: {model_id} has no revision {revision!r}") from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise TransientError(
            f"{field}: cannot ask the hub about {model_id!r} ({error}); without a way to the hub, download the"
            f" model elsewhere and give its folder as {field}, or, for a base model, name a 40-digit commit as"
            " base_model.revision"
        ) from error
