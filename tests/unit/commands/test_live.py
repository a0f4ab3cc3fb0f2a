"""The order and the words of the live view."""

from pathlib import Path
from typing import Any

from pipeline.commands import live
from pipeline.commands.chat import pieces
from pipeline.commands.output import in_bytes, in_seconds
from pipeline.stack.layout import Layout


def task(name: str, state: str | None, start: str | None = None, end: str | None = None) -> dict[str, Any]:
    return {"task_id": name, "state": state, "start_date": start, "end_date": end}


def test_steps_stand_in_the_order_of_the_release(tmp_path: Path) -> None:
    """Airflow gives them in any order."""
    names = ["promote", "compress", "plan", "evaluate_compressed", "validate", "unheard_of", "evaluate"]
    shown = [found.task_id for found in live.view(Layout(tmp_path), "r", [task(name, None) for name in names])]
    assert shown == ["plan", "validate", "evaluate", "compress", "evaluate_compressed", "promote", "unheard_of"]


def test_a_deferred_task_is_running_to_the_user(tmp_path: Path) -> None:
    """Its job is: only Airflow waits elsewhere."""
    (found,) = live.view(Layout(tmp_path), "r", [task("finetune", "deferred")])
    assert found.state == "running"


def test_a_finished_task_keeps_its_time(tmp_path: Path) -> None:
    """From its start to its end."""
    ended = task("plan", "success", "2026-01-01T00:00:00Z", "2026-01-01T00:01:30.5Z")
    (found,) = live.view(Layout(tmp_path), "r", [ended])
    assert found.elapsed_s == 90.5


def test_an_approval_says_who_has_to_act(tmp_path: Path) -> None:
    """Nothing else would show that a person is waited for."""
    (found,) = live.view(Layout(tmp_path), "r", [task("approve", "awaiting_input")])
    assert (found.state, "person" in found.note) == ("awaiting input", True)
    (skipped_soon,) = live.view(Layout(tmp_path), "r", [task("approve", "running")])
    assert skipped_soon.note == ""


class Rollout:
    """Airflow, of whose run one task is done and another goes on for long."""

    def run_state(self, *run: str) -> str:
        return "running"

    def tasks(self, *run: str) -> list[dict[str, Any]]:
        return [task("promote", "success"), task("retire", "deferred")]


def test_whoever_waits_for_a_rollout_need_not_wait_for_its_tidying_up(tmp_path: Path) -> None:
    """`retire` keeps the old replicas warm, for minutes; the new version serves before."""
    state = live.watch(Layout(tmp_path), Rollout(), ("rollout", "r"), until=("promote", "roll_back"))  # type: ignore[arg-type]
    assert state == "success"


def test_durations_and_sizes_are_short() -> None:
    """As many digits as matter."""
    assert [in_seconds(value) for value in (3.14, 42, 185)] == ["3.1 s", "42 s", "3 min 05 s"]
    assert [in_bytes(value) for value in (2_468_000, 1.5e9)] == ["2.47 MB", "1.50 GB"]


def test_an_answer_is_put_together_from_its_stream() -> None:
    """Comments, empty deltas and the end mark are no text."""
    stream = [
        ": comment",
        'data: {"choices": [{"delta": {"role": "assistant", "content": null}}]}',
        'data: {"choices": [{"delta": {"content": "refund"}}]}',
        "",
        'data: {"choices": [{"delta": {"content": "_status"}}]}',
        "data: [DONE]",
    ]
    assert "".join(pieces(iter(stream))) == "refund_status"


def test_a_task_on_its_way_back_from_the_triggerer_runs(tmp_path: Path) -> None:
    """It has begun; that it is queued again is Airflow's affair."""
    (found,) = live.view(Layout(tmp_path), "r", [task("finetune", "queued", "2026-01-01T00:00:00Z")])
    assert found.state == "running"
