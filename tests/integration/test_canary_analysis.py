"""What a rollout makes of its canary with a real gateway: streams that are timed, answers that are scored, and a
judgement that others read while it is made."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fleet_rig import MODEL, Rig

from pipeline.fleet.analysis.live import Judgement, read_judgement

pytestmark = pytest.mark.integration

ANSWERS = {f"question {index}": f"answer {index}" for index in range(400)}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A fleet that serves version 1, which knows every answer; no client asks it."""
    rig = Rig(tmp_path_factory.mktemp("analysis"))
    predictions = rig.home_path / "predictions.jsonl"
    rows = [{"prompt": prompt, "reference": reference, "loss": 1.0} for prompt, reference in ANSWERS.items()]
    predictions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rig.fleet.fetch_predictions = lambda version: predictions
    rig.up()
    rig.behave("1", answers=ANSWERS)
    rig.roll_out("1")
    yield rig
    rig.supervisor.stop()


def watched(rig: Rig, version: str) -> tuple[dict[str, str], list[Judgement]]:
    """A rollout's outcomes, and the judgements that were there while it went on."""
    seen: list[Judgement] = []

    def look() -> bool:
        found = read_judgement(rig.home_path, MODEL)
        if found and found.version == version and (not seen or found.updated_at > seen[-1].updated_at):
            seen.append(found)
        return results.done()

    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(rig.roll_out, version)
        assert rig.gateway.wait(look, 120)
        return {result.phase: result.outcome for result in results.result()}, seen


def test_a_subtly_worse_version_is_caught_by_its_answers_while_others_read_along(rig: Rig) -> None:
    """It answers fast and without an error, and half of it is wrong. Nobody but the rollout asks it."""
    rig.registry.configure(steps=[25, 100], step_s=20.0, golden_per_s=20.0, min_requests=10)
    rig.behave("2", answers=ANSWERS, accuracy=0.5)
    outcomes, seen = watched(rig, "2")
    assert outcomes["shift"] == "unhealthy"
    rollout = rig.state().history[-1]
    assert "score against stable, golden prompts" in rollout.reason
    assert "max_score_drop" in rollout.reason
    assert [found.finding for found in seen] == ["undecided"] * (len(seen) - 1) + ["unhealthy"]
    assert len(seen) > 1
    last = seen[-1]
    assert (last.step, last.weight, last.stable_version, last.client_requests) == (0, 25, "1", 0)
    assert last.comparisons == rollout.comparisons
    measures = {found.measure: found for found in last.comparisons}
    assert {"time to first token, median (probes)", "end-to-end latency, median (probes)"} <= set(measures)
    assert measures["score against stable, golden prompts"].stable == 100.0


def test_tokens_that_come_slowly_are_seen_where_the_first_one_is_fast(rig: Rig) -> None:
    """Inter-token latency, of streamed probes: 60 ms against 2."""
    rig.registry.configure(steps=[25, 100], step_s=20.0, golden_per_s=20.0, min_requests=5)
    rig.fleet.fetch_predictions = lambda version: None
    rig.behave("3", chunk_s=0.06, chunks=4)
    outcomes, seen = watched(rig, "3")
    assert outcomes["shift"] == "unhealthy"
    assert "inter-token latency, median (probes)" in rig.state().history[-1].reason
    assert seen[-1].finding == "unhealthy"


def test_the_access_log_times_the_first_byte_of_a_stream(rig: Rig) -> None:
    """And says that it was one: that is how clients' own time to first token is known."""
    rig.behave("1", chunks=5, chunk_s=0.02)
    before = rig.gateway.access_log_path.stat().st_size
    headers = {"authorization": f"Bearer {rig.key}"}
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    answer = httpx.post(
        f"{rig.gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=30, trust_env=False
    )
    assert answer.status_code == 200

    def lines() -> list[dict[str, object]]:
        text = rig.gateway.access_log_path.read_bytes()[before:].decode()
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    assert rig.gateway.wait(lambda: any(line["client"] == "client" for line in lines()), 10)
    line = next(line for line in lines() if line["client"] == "client")
    assert str(line["content_type"]).startswith("text/event-stream")
    assert isinstance(line["first_byte_us"], int)
    assert isinstance(line["duration_us"], int)
    assert 0 < line["first_byte_us"] < line["duration_us"] - 50_000
