"""validate: checks the data against the recipe's rules before anything is trained on it.

Reads both data files and, if the recipe names them, the user's suite and the base model's tokenizer. Writes
train.jsonl and eval.jsonl (rows in normal form, one a line), report.html and report.json. Fails closed: a rule
that is broken, or that could not be evaluated, ends the release; the report is then kept beside the artifact's place.
"""

import resource
import shutil
import time
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.contracts.base import FileRef
from pipeline.contracts.specs import ValidateResult, ValidateSpec
from pipeline.data.columns import TokenCounter, count_bytes, first_lines, with_overlap
from pipeline.data.expectations import Engine, Outcome
from pipeline.data.reading import Batch, suffix_of
from pipeline.data.report import first_rows, profile, refusal, rule_entry, write_report
from pipeline.data.rules import SPLITS, Rule, Split, named_columns, recipe_rules, suite_rules
from pipeline.data.tables import FORMS, excerpts, file_tokenizer, read_table
from pipeline.errors import DataError
from pipeline.job import Job
from pipeline.registry.runs import RunLogger, step_run

MAX_LISTED_LABELS = 1000
PROGRESS_EVERY_S = 2.0


def run(spec: ValidateSpec, job: Job) -> ValidateResult:
    """Checks both files and stages them.

    Raises:
        DataError: a rule is broken; the message names each with its count and its first lines.
        SpecError: the suite or a file's name is not understood.
    """
    with step_run(job) as tracking:
        counter = token_counter(spec, job)
        rules = recipe_rules(spec.rules, spec.format, estimated_tokens=counter is None)
        if spec.suite is not None:
            rules += suite_rules(job.fetch_file(spec.suite))
        engine = Engine(rules)
        tables = read_tables(spec, job, rules, counter or count_bytes)
        outcomes = {split: engine.check(tables[split], _rules_of(rules, split)) for split in SPLITS}
        report_path, entries = make_report(spec, job, tables, outcomes, estimated_tokens=counter is None)
        refused = refusal_of(spec, job, entries, report_path)
        track(tracking, tables, entries, report_path)
        if refused:
            raise refused
    shutil.copytree(report_path, job.staging_path, dirs_exist_ok=True)
    return ValidateResult(
        train_rows=tables["train"].height,
        eval_rows=tables["eval"].height,
        labels=labels(tables["train"]),
        rules=len(rules),
    )


def token_counter(spec: ValidateSpec, job: Job) -> TokenCounter | None:
    """Counts with the base model's tokenizer; None where there is none yet, so that tokens are estimated."""
    counter = file_tokenizer(job.fetch_folder(spec.base_model)) if spec.base_model is not None else None
    if counter is None:
        job.say("no tokenizer.json of a base model: tokens are estimated as one a byte, which errs high")
    return counter


def read_tables(spec: ValidateSpec, job: Job, rules: list[Rule], counter: TokenCounter) -> dict[Split, pl.DataFrame]:
    """Both tables in one pass over each file, which also stages the rows in normal form."""
    sources: dict[Split, FileRef] = {"train": spec.train, "eval": spec.eval}
    named = {name for rule in rules for name in named_columns(rule.kwargs)}
    progress = _Progress(job, sum(ref.size_bytes for ref in sources.values()))
    tables: dict[Split, pl.DataFrame] = {}
    for split, ref in sources.items():
        tables[split] = read_table(
            job.fetch_file(ref),
            suffix_of(ref.uri),
            FORMS[spec.format],
            rows_path=job.staging_path / f"{split}.jsonl",
            count_tokens=counter,
            kept=named,
            on_batch=progress.batch,
        )
        progress.file_done(ref.size_bytes)
    job.figures["rows_per_s"] = round(progress.rows / progress.elapsed_s)
    tables["eval"] = with_overlap(tables["eval"], first_lines(tables["train"]))
    tables["train"] = with_overlap(tables["train"], None)
    return tables


class _Progress:
    """Progress over the bytes of both files, at most one line every two seconds."""

    def __init__(self, job: Job, total_bytes: int) -> None:
        self.job, self.total_bytes = job, max(1, total_bytes)
        self.rows = self.files_bytes = 0
        self.started = self.said = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return max(1e-6, time.monotonic() - self.started)

    def batch(self, batch: Batch) -> None:
        self.rows += len(batch.rows)
        if time.monotonic() - self.said >= PROGRESS_EVERY_S:
            self._say(self.files_bytes + batch.done_bytes)

    def file_done(self, size_bytes: int) -> None:
        self.files_bytes += size_bytes
        self._say(self.files_bytes)

    def _say(self, done_bytes: int) -> None:
        self.said = time.monotonic()
        total_kb = max(1, self.total_bytes // 1000)
        self.job.progress(min(total_kb, -(-done_bytes // 1000)), total_kb, rows=self.rows, unit="kB")


def make_report(
    spec: ValidateSpec,
    job: Job,
    tables: dict[Split, pl.DataFrame],
    outcomes: dict[Split, list[Outcome]],
    *,
    estimated_tokens: bool,
) -> tuple[Path, list[dict[str, Any]]]:
    """The report's folder and its entries, one a rule."""
    entries: list[dict[str, Any]] = []
    files: dict[str, dict[str, Any]] = {}
    sources: dict[Split, FileRef] = {"train": spec.train, "eval": spec.eval}
    for split, ref in sources.items():
        lines = {line for outcome in outcomes[split] for line in outcome.lines}
        form = FORMS[spec.format]
        texts = excerpts(job.fetch_file(ref), suffix_of(ref.uri), form, lines) if lines else {}
        entries += [rule_entry(outcome, first_rows(outcome, tables[split], texts)) for outcome in outcomes[split]]
        files[split] = profile(tables[split], digest=ref.digest, estimated_tokens=estimated_tokens)
    report_path = job.work_path / "report"
    write_report(report_path, files=files, entries=entries)
    job.figures["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return report_path, entries


def track(
    tracking: RunLogger, tables: dict[Split, pl.DataFrame], entries: list[dict[str, Any]], report_path: Path
) -> None:
    """The results in MLflow, passed or not."""
    broken = sum(not entry["passed"] for entry in entries)
    metrics = {f"{split}_rows": float(table.height) for split, table in tables.items()}
    tracking.log_metrics({**metrics, "rules": float(len(entries)), "rules_broken": float(broken)})
    tracking.set_tags({"slipway.validation": "refused" if broken else "passed"})
    tracking.log_artifacts(report_path, "validation")


def refusal_of(spec: ValidateSpec, job: Job, entries: list[dict[str, Any]], report_path: Path) -> DataError | None:
    """The error that ends the step, its report kept; None if every rule holds."""
    if all(entry["passed"] for entry in entries):
        job.say(f"all {len(entries)} rules hold")
        return None
    kept_uri = job.publish_report(report_path)
    names = {"train": _file_name(spec.train), "eval": _file_name(spec.eval)}
    return DataError(f"{refusal(entries, names)}\nthe whole report: {kept_uri}/report.html")


def labels(table: pl.DataFrame) -> tuple[str, ...]:
    """The distinct answers, sorted, if there are few enough to be labels."""
    distinct = table["answer"].drop_nulls().unique()
    return tuple(sorted(distinct.to_list())) if len(distinct) <= MAX_LISTED_LABELS else ()


def _rules_of(rules: list[Rule], split: Split) -> list[Rule]:
    return [rule for rule in rules if rule.split == split]


def _file_name(ref: FileRef) -> str:
    return ref.uri.rsplit("/", 1)[-1]
