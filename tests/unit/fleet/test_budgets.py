"""Tokens counted out of the gateway's log: each line once, whatever becomes of the file or of who counts."""

import json
from pathlib import Path

import pytest

from pipeline.errors import SpecError
from pipeline.fleet.doors import budgets, keys
from pipeline.fleet.doors.keys import Allowed, KeyRing
from pipeline.stack.layout import Layout

NOON = 1_800_014_400.0
DAY_S = 86_400.0


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    layout.create()
    return layout


@pytest.fixture
def log(layout: Layout) -> Path:
    return layout.logs_path / "gateway-access.jsonl"


def line(client: str = "shop", ts: float = NOON, **fields: object) -> str:
    return json.dumps({"ts": f"{ts:.3f}", "client": client, **fields}) + "\n"


def add(log: Path, *lines: str) -> None:
    with log.open("a") as file:
        file.writelines(lines)


def counted(layout: Layout, log: Path, now: float = NOON) -> dict[str, int]:
    return budgets.count(layout, log, now).of(budgets.today(now))


def test_whole_answers_and_streams_count_with_prompt_and_completion(layout: Layout, log: Path) -> None:
    """Headers are text, numbers out of a stream are not; a request without any counts nothing."""
    add(log, line(prompt_tokens="10", completion_tokens="5"))
    add(log, line(prompt_tokens=None, stream_prompt_tokens=7.0, stream_completion_tokens=3.0))
    add(log, line(prompt_tokens=None), line(client="other", prompt_tokens="1", completion_tokens="1"), "no json\n")
    assert counted(layout, log) == {"shop": 25, "other": 2}


def test_a_line_is_counted_once_and_only_when_it_is_whole(layout: Layout, log: Path) -> None:
    """Whoever counts may be killed between any two rounds: all that it knows is in one file."""
    whole = line(prompt_tokens="10", completion_tokens="0")
    add(log, whole, whole[:20])
    assert counted(layout, log) == {"shop": 10}
    assert counted(layout, log) == {"shop": 10}
    add(log, whole[20:])
    assert counted(layout, log) == {"shop": 20}


def test_a_new_log_goes_on_where_the_one_before_ended(layout: Layout, log: Path) -> None:
    """What was written to the old one after the last look counts, too."""
    add(log, line(prompt_tokens="1"))
    assert counted(layout, log) == {"shop": 1}
    add(log, line(prompt_tokens="2"))
    log.replace(log.with_suffix(".1.jsonl"))
    add(log, line(prompt_tokens="4"))
    assert counted(layout, log) == {"shop": 7}
    assert counted(layout, log) == {"shop": 7}


def test_what_comes_to_the_log_before_until_the_new_one_is_there_counts(
    layout: Layout, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was put aside, and the gateway writes on in it until it has opened the new one: in mid-round, say."""
    add(log, line(prompt_tokens="1"))
    counted(layout, log)
    before = log.with_suffix(".1.jsonl")
    log.replace(before)
    read = budgets._read

    def slow(path: Path, usage: budgets.Usage, day: str, *, is_current: bool) -> budgets.Usage:
        found = read(path, usage, day, is_current=is_current)
        if path == before and not log.exists():
            add(before, line(prompt_tokens="2"))
            add(log, line(prompt_tokens="4"))
        return found

    monkeypatch.setattr(budgets, "_read", slow)
    counted(layout, log)
    assert counted(layout, log) == {"shop": 7}


def test_a_long_log_is_read_in_pieces(layout: Layout, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one before is read to its end before the next is begun."""
    monkeypatch.setattr(budgets, "MAX_READ_BYTES", 200)
    add(log, line(prompt_tokens="1"))
    counted(layout, log)
    add(log, *[line(prompt_tokens="1")] * 20)
    log.replace(log.with_suffix(".1.jsonl"))
    add(log, line(prompt_tokens="1"))
    assert counted(layout, log) == {"shop": 22}


def test_at_midnight_every_budget_begins_anew(layout: Layout, log: Path) -> None:
    """In UTC; yesterday's lines count for nobody."""
    ring, _ = keys.create(KeyRing(), "shop", Allowed(tokens_per_day=10), NOON)
    add(log, line(prompt_tokens="10"))
    usage = budgets.count(layout, log, NOON)
    assert budgets.exhausted(ring, usage, NOON) == {"shop"}
    assert budgets.exhausted(ring, usage, NOON + DAY_S) == frozenset()
    add(log, line(prompt_tokens="3", ts=NOON), line(prompt_tokens="2", ts=NOON + DAY_S))
    assert counted(layout, log, NOON + DAY_S) == {"shop": 2}


def test_a_client_is_refused_from_its_budget_on_and_others_never(layout: Layout, log: Path) -> None:
    """One below is still let in."""
    ring, _ = keys.create(KeyRing(), "shop", Allowed(tokens_per_day=10), NOON)
    ring, _ = keys.create(ring, "free", Allowed(), NOON)
    add(log, line(prompt_tokens="9"), line(client="free", prompt_tokens="1000000"))
    assert budgets.exhausted(ring, budgets.count(layout, log, NOON), NOON) == frozenset()
    add(log, line(completion_tokens="1"))
    assert budgets.exhausted(ring, budgets.count(layout, log, NOON), NOON) == {"shop"}


def test_damaged_counts_are_an_error_and_not_zero(layout: Layout) -> None:
    """Else a budget would begin anew by itself."""
    budgets.usage_path(layout).parent.mkdir(parents=True)
    budgets.usage_path(layout).write_text("{")
    with pytest.raises(SpecError, match=r"usage\.json is damaged"):
        budgets.read_usage(layout)
