"""The rows that show the quantizer what the model's activations look like."""

import json
import random
from pathlib import Path
from typing import Any

from pipeline.errors import DataError

TRAIN_FILE = "train.jsonl"


def choose_rows(dataset_path: Path, *, rows: int, seed: int) -> list[list[dict[str, str]]]:
    """The messages of `rows` training rows (all, if there are fewer), the same for the same seed, in file order.

    Raises:
        DataError: there is no row.
    """
    path = dataset_path / TRAIN_FILE
    with path.open("rb") as lines:
        total = sum(1 for _ in lines)
    if not total:
        raise DataError(f"{path} has no rows, expected at least one to calibrate with; run validate again")
    chosen = set(random.Random(seed).sample(range(total), min(rows, total)))
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line)["messages"] for number, line in enumerate(lines) if number in chosen]


def tokenize(conversations: list[list[dict[str, str]]], tokenizer: Any, max_seq_len: int) -> list[list[int]]:
    """Each whole conversation through the chat template, cut at `max_seq_len` tokens, as in training."""
    return [
        tokenizer(
            tokenizer.apply_chat_template(messages, tokenize=False),
            add_special_tokens=False,
            truncation=True,
            max_length=max_seq_len,
        )["input_ids"]
        for messages in conversations
    ]
