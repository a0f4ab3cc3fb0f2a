"""The training rows in a model's tokens, as an artifact that trainings share.

Its key covers the rows, the tokenizer with its chat template, and the length: another training with other settings
finds it again, on this machine or another. Of a job's nodes the first makes it; the others wait, and fetch it.
"""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.artifacts.locks import locked
from pipeline.contracts.base import FileRef, canonical_json, sha256_hex, step_key
from pipeline.contracts.finetune import Finetune
from pipeline.contracts.manifest import Manifest
from pipeline.contracts.specs import TokensResult, TokensSpec
from pipeline.job import Job
from pipeline.provenance import draft_manifest
from pipeline.training.base_model import load_tokenizer
from pipeline.training.tokenizing import OnProgress, worthwhile_processes, write_tokens

VERSION = 1
"""Raise it when the same rows become other tokens or other files."""
POLL_S = 0.5
PATIENCE_S = 60.0
"""How long a node waits for the first one, and a second more for each PATIENCE_BYTES of the rows. Then it makes the
tokens itself: they come out the same, and whoever publishes second keeps the first one's."""
PATIENCE_BYTES = 1 << 20
PROGRESS_EVERY_S = 2.0


def make_spec(rows: FileRef, model_path: Path, settings: Finetune) -> TokensSpec:
    return TokensSpec(
        rows=rows,
        tokenizer=tokenizer_digest(load_tokenizer(model_path)),
        max_seq_len=settings.max_seq_len,
        pairs=settings.method == "dpo",
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """Over all that makes tokens of a chat, in whichever files it stood."""
    parts = {
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "chat_template": tokenizer.chat_template,
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
    }
    return sha256_hex(canonical_json(parts))


def fetch_tokens(spec: TokensSpec, job: Job, *, rows_path: Path, model_path: Path) -> tuple[Path, TokensResult]:
    """A local, verified folder with the tokens, which are made if no training has made them yet.

    Raises:
        DataError: rows that teach nothing.
        IntegrityError: a shard was altered since; names it.
        SpecError: a tokenizer without a chat template, or one that cannot be trained with.
        TransientError: the store cannot be reached, or a process was killed.
    """
    key = step_key("tokens", VERSION, spec)
    maker = Job(step="tokens", key=key, out_uri=f"{job.store_uri}/tokens/{key}", settings=job.settings)
    manifest = artifacts.find_manifest(maker.out_uri)
    if manifest is None and not job.is_first_node:
        manifest = _wait(maker, spec.rows.size_bytes)
    if manifest is not None:
        job.say(f"reused the tokens in {maker.out_uri} (made {manifest.started_at})")
    else:
        with locked(maker.work_path.with_name(f"{key}.lock")):
            manifest = artifacts.find_manifest(maker.out_uri) or _make(spec, maker, rows_path, model_path)
    return job.fetch(manifest.ref(maker.out_uri)), TokensResult.model_validate(manifest.result)


def _wait(maker: Job, size_bytes: int) -> Manifest | None:
    """What the first node published; None if it takes too long about it."""
    maker.say("waiting: the first node tokenizes the rows")
    until = time.monotonic() + PATIENCE_S + size_bytes / PATIENCE_BYTES
    while time.monotonic() < until:
        if manifest := artifacts.find_manifest(maker.out_uri):
            return manifest
        time.sleep(POLL_S)
    maker.say("the first node has not published any tokens: making them here")
    return None


def _make(spec: TokensSpec, maker: Job, rows_path: Path, model_path: Path) -> Manifest:
    started_at, started = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    maker.clear_staging()
    cpus = maker.settings.cpus or len(os.sched_getaffinity(0))
    processes = worthwhile_processes(rows_path.stat().st_size, cpus)
    result = write_tokens(
        rows_path,
        model_path,
        maker.staging_path,
        max_seq_len=spec.max_seq_len,
        pairs=spec.pairs,
        processes=processes,
        on_progress=_progress(maker),
    )
    seconds = time.monotonic() - started
    maker.figures.update(processes=processes, rows_per_s=round(result.rows / max(seconds, 1e-6)))
    draft = draft_manifest(maker, spec, result, started_at=started_at, duration_s=seconds)
    manifest = artifacts.publish(maker.out_uri, maker.staging_path, draft)
    maker.clear_work()
    maker.say(f"tokenized {result.rows} rows in {seconds:.1f} s ({processes} processes) into {maker.out_uri}")
    return manifest


def _progress(job: Job) -> OnProgress:
    """Progress lines over the bytes of the rows, one every PROGRESS_EVERY_S at most, and one at the end."""
    said = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        nonlocal said
        if done == total or time.monotonic() - said >= PROGRESS_EVERY_S:
            said = time.monotonic()
            job.progress(-(-done // 1000), -(-total // 1000), unit="kB", doing="tokenize")

    return on_progress
