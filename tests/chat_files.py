"""Small files of chat and preference rows, and the spec and job to validate them with."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.artifacts.digests import file_digest
from pipeline.contracts.base import FileRef, step_key
from pipeline.contracts.recipe import Format, Validation
from pipeline.contracts.specs import STEPS, ValidateSpec
from pipeline.job import Job
from pipeline.settings import load


def chat(prompt: Any, answer: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def good_rows(count: int, what: str = "train") -> list[Any]:
    """Rows that keep every rule, with three answers."""
    return [chat(f"{what} question number {number}", f"answer {number % 3}") for number in range(count)]


def preference(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def good_pairs(count: int, what: str = "train") -> list[Any]:
    """Preference rows that keep every rule, with three chosen answers; two pairs for each prompt."""
    return [
        preference(f"{what} question number {number // 2}", f"answer {number % 3}", f"no answer {number % 2}")
        for number in range(count)
    ]


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """Rows as JSON; a row that is bytes already is written as it is, with no line break added."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows]
    path.write_bytes(b"".join(lines))
    return path


def file_ref(path: Path) -> FileRef:
    return FileRef(uri=path.as_uri(), digest=file_digest(path), size_bytes=path.stat().st_size)


def validate_spec(
    train_path: Path, eval_path: Path, *, suite_path: Path | None = None, row_format: Format = "chat", **rules: Any
) -> ValidateSpec:
    """Rules for small files, changed by `rules`."""
    return ValidateSpec(
        train=file_ref(train_path),
        eval=file_ref(eval_path),
        format=row_format,
        rules=Validation(**{"min_rows": 10, **rules}),
        suite=file_ref(suite_path) if suite_path else None,
    )


def validate_job(spec: ValidateSpec, home_path: Path) -> Job:
    """A job for `spec` with its staging folder made."""
    key = step_key("validate", STEPS["validate"].version, spec)
    out_uri = f"{home_path.as_uri()}/store/validate/{key}"
    job = Job(step="validate", key=key, out_uri=out_uri, settings=load({"SLIPWAY_HOME": str(home_path)}))
    job.staging_path.mkdir(parents=True)
    return job
