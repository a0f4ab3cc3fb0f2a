"""Validation in rows a second, against the same rules written in polars over the same file, in one run.

    .venvs/control/bin/python -m tests.bench.validation [ROWS]

Both read the file, check structure, roles, content, encoding, lengths, duplicates, conflicts and distinct answers, and
write the rows out in normal form. Importing the libraries is not counted. The best of three. polars stops at the first
line that is no JSON; validate names every one, which is what the difference buys.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl

from pipeline.contracts.recipe import Validation
from pipeline.data.chat import CHAT
from pipeline.data.columns import NO_TEXT, count_bytes, with_overlap
from pipeline.data.expectations import Engine
from pipeline.data.generate import support_intents
from pipeline.data.rules import recipe_rules
from pipeline.data.tables import read_table
from pipeline.data.text import comparable_column

RULES = Validation(max_chars=400, max_tokens=256, max_duplicate_fraction=0.01, min_distinct_answers=30)
SCHEMA = {"messages": pl.List(pl.Struct({"role": pl.String, "content": pl.String}))}


def with_validate(path: Path, rows_path: Path, engine: Engine) -> int:
    """How many rules hold, by the step's own parts."""
    table = read_table(
        path,
        ".jsonl",
        CHAT,
        rows_path=rows_path,
        count_tokens=count_bytes,
        on_batch=lambda batch: None,
    )
    outcomes = engine.check(with_overlap(table, None), TRAIN_RULES)
    return sum(outcome.passed for outcome in outcomes)


def with_polars(path: Path, rows_path: Path) -> int:
    """How many rules hold, by hand."""
    messages = pl.col("messages")
    contents = messages.list.eval(pl.element().struct.field("content"))
    chars = messages.list.eval(pl.element().struct.field("content").str.len_chars())
    rows = pl.read_ndjson(path, schema=SCHEMA)
    rows.write_ndjson(rows_path)
    table = rows.select(
        structure=messages.is_null(),
        roles=messages.list.eval(pl.element().struct.field("role")).list.join(",") != "user,assistant",
        prompt=contents.list.first(),
        answer=contents.list.last(),
        low=chars.list.min(),
        high=chars.list.max(),
    )
    both = table.select(
        "structure",
        "roles",
        "low",
        "high",
        "answer",
        blank=(pl.col("prompt").str.strip_chars() == "") | (pl.col("answer").str.strip_chars() == ""),
        no_text=pl.col("prompt").str.contains(NO_TEXT) | pl.col("answer").str.contains(NO_TEXT),
        tokens=pl.col("prompt").str.len_bytes() + pl.col("answer").str.len_bytes(),
        key=comparable_column(pl.col("prompt")).hash(),
    )
    distinct_prompts, distinct_rows = both["key"].n_unique(), both.select("key", "answer").n_unique()
    height = both.height
    held = [
        height >= RULES.min_rows,
        not both["structure"].any(),
        not both["roles"].any(),
        not both["blank"].any(),
        not both["no_text"].any(),
        both["low"].min() >= RULES.min_chars,
        both["high"].max() <= RULES.max_chars,
        both["tokens"].max() <= RULES.max_tokens,
        (height - distinct_rows) / height <= RULES.max_duplicate_fraction,
        (distinct_rows - distinct_prompts) / height <= RULES.max_conflict_fraction,
        both["answer"].n_unique() >= RULES.min_distinct_answers,
    ]
    return sum(held)


def best_of_three(work: Callable[[], int]) -> tuple[float, int]:
    """The least seconds, and what came out."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        held = work()
        times.append(time.perf_counter() - started)
    return min(times), held


TRAIN_RULES = [rule for rule in recipe_rules(RULES, "chat", estimated_tokens=True) if rule.split == "train"]


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "train.jsonl"
        support_intents(train_rows=rows, eval_rows=50, seed=7, train_path=path, eval_path=folder / "eval.jsonl")
        engine = Engine(TRAIN_RULES)
        ours_s, ours_held = best_of_three(lambda: with_validate(path, folder / "ours.jsonl", engine))
        theirs_s, theirs_held = best_of_three(lambda: with_polars(path, folder / "theirs.jsonl"))
    if not ours_held == theirs_held == len(TRAIN_RULES):
        raise SystemExit(f"{ours_held} and {theirs_held} of {len(TRAIN_RULES)} rules hold, expected all")
    figures = {
        "name": "validation",
        "value": round(rows / ours_s),
        "unit": "rows/s",
        "baseline": "the same rules in polars",
        "baseline_value": round(rows / theirs_s),
        "ratio": round(theirs_s / ours_s, 3),
    }
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
