"""When two prompts count as the same: in lower case, with every run of white space as one blank."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl


def comparable(prompt: str) -> str:
    return " ".join(prompt.lower().split())


def comparable_column(prompt: pl.Expr) -> pl.Expr:
    """`comparable` for a whole column."""
    return prompt.str.to_lowercase().str.replace_all(r"[\s\x1c-\x1f]+", " ").str.strip_chars(" ")
