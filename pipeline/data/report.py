"""What validation found, as report.json for programs and report.html for people.

Both are deterministic: no times, no paths. The page is one file without scripts or anything fetched, so it opens
anywhere. Everything that comes from the data is escaped.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.data.columns import COLUMNS
from pipeline.data.expectations import Outcome
from pipeline.data.rules import Rule, Split, named_columns

TEMPLATE_PATH = Path(__file__).with_name("report_template.html")
MAX_BARS = 24
MAX_LABELS = 40
MAX_VALUE_CHARS = 120

FILE_NAMES: dict[Split, str] = {"train": "training rows", "eval": "held-out rows"}


def profile(table: pl.DataFrame, *, digest: str, estimated_tokens: bool) -> dict[str, Any]:
    """What a file looks like: its size, its lengths, its answers."""
    counts = table.get_column("answer").drop_nulls().value_counts().sort(["count", "answer"], descending=[True, False])
    top = counts.head(MAX_LABELS)
    return {
        "digest": digest,
        "rows": table.height,
        "estimated_tokens": estimated_tokens,
        "distinct_answers": counts.height,
        "longest_message_chars": _spread(table["chars_max"]),
        "tokens": _spread(table["tokens"]),
        "answers": [{"answer": _cut(answer), "rows": rows} for answer, rows in top.iter_rows()],
    }


def _spread(column: pl.Series) -> dict[str, Any] | None:
    """Minimum, median, 99th percentile, maximum, and a histogram of whole numbers."""
    values = column.drop_nulls()
    if values.is_empty():
        return None
    low, high = int(values.min()), int(values.max())  # type: ignore[arg-type]
    width = -(-(high - low + 1) // MAX_BARS)
    bins = dict(((values - low) // width).value_counts().iter_rows())
    bars = [
        {"from": low + at * width, "to": min(high, low + (at + 1) * width - 1), "rows": bins.get(at, 0)}
        for at in range((high - low) // width + 1)
    ]
    return {
        "min": low,
        "median": float(values.median()),  # type: ignore[arg-type]
        "p99": float(values.quantile(0.99, "nearest")),  # type: ignore[arg-type]
        "max": high,
        "bars": bars,
    }


def first_rows(outcome: Outcome, table: pl.DataFrame, texts: Mapping[int, str]) -> list[dict[str, Any]]:
    """The first rows that broke the rule: line, what is wrong there, and how the row begins."""
    found = {row["line"]: row for row in table.filter(pl.col("line").is_in(outcome.lines)).iter_rows(named=True)}
    return [
        {"line": line, "what": describe_row(outcome.rule, found[line]), "excerpt": texts.get(line, "")}
        for line in outcome.lines
    ]


def describe_row(rule: Rule, row: Mapping[str, Any]) -> str:
    """How `row` breaks `rule`, in a few words."""
    names = [name for name in named_columns(rule.kwargs) if name in row]
    if len(names) != 1:
        return ", ".join(f"{name} is {_value(row[name])}" for name in names)
    (name,) = names
    value = row[name]
    if name.endswith("_problem"):
        return _cut(str(value))
    sentence = {
        "duplicate_of": f"the same as line {value}",
        "conflicts_with": f"the prompt of line {value}, with another answer: {_value(row['answer'])}",
        "contradicts": f"the two answers of line {value}, the other way round",
        "in_train": f"the prompt of line {value} of the training rows",
        "chars_min": f"a message of {value} characters",
        "chars_max": f"a message of {value} characters",
        "tokens": f"{value} tokens",
    }
    return sentence.get(name, f"{name} is {_value(value)}")


def _value(value: Any) -> str:
    return json.dumps(_cut(value), ensure_ascii=False) if isinstance(value, str) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}…"


def rule_entry(outcome: Outcome, first: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rule = outcome.rule
    return {
        "file": rule.split,
        "rule": rule.name,
        "says": rule.says,
        "passed": outcome.passed,
        "found": found_sentence(outcome),
        "checked_rows": outcome.checked,
        "broken_rows": outcome.broken,
        "observed": _plain(outcome.observed),
        "error": outcome.error,
        "first": list(first),
        "expectation": {"type": rule.type, "kwargs": rule.kwargs},
    }


def _plain(value: Any) -> Any:
    """A JSON value; what Great Expectations observed may be a number of numpy's or something larger."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "size", 0) == 1 else _cut(str(value))


def found_sentence(outcome: Outcome) -> str:
    """What came out, for the table of rules and the error message."""
    if outcome.error:
        return f"could not be evaluated: {_cut(outcome.error)}"
    if outcome.broken is not None:
        return f"{outcome.broken:,} of {outcome.checked or 0:,} rows" if outcome.broken else "no row breaks it"
    observed = _plain(outcome.observed)
    return f"found {observed:,}" if isinstance(observed, int | float) else f"found {observed}"


def refusal(entries: Sequence[dict[str, Any]], names: Mapping[str, str]) -> str:
    """The error message: each broken rule with its count and the first offending lines.

    Args:
        names: of the files, as the user knows them.
    """
    broken = [entry for entry in entries if not entry["passed"]]
    lines = [f"the data breaks {len(broken)} of {len(entries)} rules:"]
    for entry in broken:
        where = "; ".join(f"line {row['line']}: {row['what']}" for row in entry["first"][:3])
        lines.append(
            f"  {entry['file']} {entry['rule']} ({names[entry['file']]}): {entry['found']}, expected: {entry['says']}"
            + (f"; first {where}" if where else "")
        )
    return "\n".join(lines)


def write_report(folder: Path, *, files: Mapping[str, dict[str, Any]], entries: Sequence[dict[str, Any]]) -> None:
    """report.json and report.html in `folder`."""
    from jinja2 import Environment, StrictUndefined

    report = {"passed": all(entry["passed"] for entry in entries), "files": dict(files), "rules": list(entries)}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2, ensure_ascii=False, sort_keys=True)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE_PATH.read_text(encoding="utf-8"))
    page = template.render(report=report, file_names=FILE_NAMES, columns=COLUMNS)
    (folder / "report.html").write_text(page, encoding="utf-8")
