"""The project's own demonstration data: customers of an online shop, and the intent of each message.

Writes chat rows, one a line: `{"messages": [{"role": "user", "content": "wheres my kettle"},
{"role": "assistant", "content": "track order"}]}`, or preference rows, with an intent that is rejected. The same
arguments give the same bytes, on any machine.
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.data.support_phrases import BACKGROUND, CLOSINGS, INTENTS, OPENINGS, SHORTHAND, SLOTS
from pipeline.data.text import comparable
from pipeline.errors import SpecError

ALTERNATIVES = re.compile(r"\[([^\]]*)\]")
SLOT = re.compile(r"\{(\w+)\}")
NEIGHBOURS = {
    letter: row[max(0, at - 1) : at] + row[at + 1 : at + 2]
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for at, letter in enumerate(row)
}
"""Keys to the left and right of each letter."""

MAX_TRIES = 10_000
"""In a row without a prompt that is new."""


def support_intents(
    *, train_rows: int, eval_rows: int, seed: int, train_path: Path, eval_path: Path, preferences: bool = False
) -> None:
    """Writes both files, as preference rows or as chat rows with the same prompts and answers.

    All prompts differ, even in lower case, within each file and between the two. The held-out rows depend on
    `eval_rows` and `seed` alone, so models trained on more or fewer rows are scored on the same ones.

    Raises:
        SpecError: more rows were asked for than there are different prompts.
    """
    seen: set[str] = set()
    for path, rows, purpose in ((eval_path, eval_rows, "eval"), (train_path, train_rows, "train")):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for prompt, intent in _rows(rows, random.Random(f"support-intents/{seed}/{purpose}"), seen):
                line = _preference_line(prompt, intent) if preferences else _chat_line(prompt, intent)
                file.write(line + "\n")


def _chat_line(prompt: str, answer: str) -> str:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}, ensure_ascii=False)


def _preference_line(prompt: str, intent: str) -> str:
    """With another intent rejected, which the prompt alone decides."""
    others = [other for other in INTENTS if other != intent]
    row = {"prompt": prompt, "chosen": intent, "rejected": random.Random(f"rejected/{prompt}").choice(others)}
    return json.dumps(row, ensure_ascii=False)


def _rows(count: int, dice: random.Random, seen: set[str]) -> Iterator[tuple[str, str]]:
    """`count` prompts that are not in `seen`, with every intent as often as any other (give or take one)."""
    intents: list[str] = []
    for number in range(count):
        if not intents:
            intents = list(INTENTS)
            dice.shuffle(intents)
        intent = intents.pop()
        for _ in range(MAX_TRIES):
            prompt = message(intent, dice)
            if comparable(prompt) not in seen:
                break
        else:
            raise SpecError(
                f"no new prompt for {intent!r} after {number} rows and {MAX_TRIES} tries;"
                " lower dataset.generate.train_rows or eval_rows"
            )
        seen.add(comparable(prompt))
        yield prompt, intent


def message(intent: str, dice: random.Random) -> str:
    """One customer's message: the request, often with a greeting, some background, and slips of the fingers."""
    parts = [_expand(dice.choice(INTENTS[intent]), dice)]
    if dice.random() < 0.25:
        parts.insert(dice.choice((0, 1)), _expand(dice.choice(BACKGROUND), dice))
    if dice.random() < 0.35:
        parts.insert(0, dice.choice(OPENINGS))
    if dice.random() < 0.3:
        parts.append(dice.choice(CLOSINGS))
    text = parts[0]
    for part in parts[1:]:
        text += dice.choice((", ", ". ", " - ", " ", "! ")) + part
    if dice.random() < 0.3:
        text = _abbreviate(text, dice)
    for _ in range(dice.choice((0, 0, 0, 1, 1, 2))):
        text = _mistype(text, dice)
    return _case(text, dice) + dice.choice(("", "", "", ".", "?", "?", "!", "??", "...", "!!"))


def _expand(pattern: str, dice: random.Random) -> str:
    """The pattern with one of each group of alternatives and a value in each slot."""
    text = ALTERNATIVES.sub(lambda group: dice.choice(group[1].split("|")), pattern)
    values: dict[str, str] = {}

    def value(slot: re.Match[str]) -> str:
        name = slot[1]
        if name not in values:
            values[name] = _slot_value(name, values, dice)
        return values[name]

    return " ".join(SLOT.sub(value, text).replace(" ,", ",").split())


def _slot_value(name: str, taken: dict[str, str], dice: random.Random) -> str:
    if name == "order":
        return dice.choice(("#", "", "no. ")) + str(dice.randrange(10_000, 1_000_000))
    if name == "amount":
        return f"{dice.randrange(5, 400)}" + dice.choice((" euros", " eur", ".99", " dollars"))
    source = {"other": "item", "colour2": "colour"}.get(name, name)
    return dice.choice([value for value in SLOTS[source] if value not in taken.values()])


def _abbreviate(text: str, dice: random.Random) -> str:
    """Some words as people type them on a phone."""
    short = dict(SHORTHAND)
    words = [short[word] if word in short and dice.random() < 0.6 else word for word in text.split(" ")]
    return " ".join(words)


def _mistype(text: str, dice: random.Random) -> str:
    """One slip: two letters swapped, one left out, doubled, or hit beside."""
    places = [at for at in range(len(text) - 1) if text[at].isalpha() and text[at + 1].isalpha()]
    if not places:
        return text
    at = dice.choice(places)
    here, there = text[at], text[at + 1]
    slip = dice.randrange(4)
    if slip == 0:
        replaced = there + here
    elif slip == 1:
        replaced = there
    elif slip == 2:
        replaced = here + here + there
    else:
        replaced = dice.choice(NEIGHBOURS.get(here.lower(), here)) + there
    return text[:at] + replaced + text[at + 2 :]


def _case(text: str, dice: random.Random) -> str:
    """As typed, all lower case, sentence case, or (seldom) shouted."""
    roll = dice.random()
    if roll < 0.4:
        return text.lower()
    if roll < 0.85:
        return text[0].upper() + text[1:]
    return text.upper() if roll > 0.97 else text
