"""A rollout of a real vLLM replica: a tiny model in its 4-bit form, whose kernels are its own.

End-to-end tests serve models as they were trained, and roll out one real replica after another.
"""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
from fleet_rig import MODEL, Rig
from stand_in_metrics import Metrics

from pipeline import settings
from pipeline.artifacts.digests import folder_digest
from pipeline.fleet.local_replicas import LocalReplicas, VllmEngine
from pipeline.fleet.replicas import Replicas
from pipeline.settings import ROOT

pytestmark = pytest.mark.integration

INFRA = ROOT / "infra"
FOREIGN = re.compile(r"\[?W\d{4} .*|\S+:\d+: \w+Warning: .*|  .*|Loading safetensors .*|")
"""Lines of an engine's log that are no JSON: what torch and C libraries warn of while they load, Python's own warnings
with the line that they are about, and the progress of loading."""

MAKE_BUNDLE = """
import sys
from pathlib import Path
from pipeline.compression import export
export.prepare_libraries()
from tests import tiny_llama
folder = Path(sys.argv[1])
tiny_llama.write_model(folder / "none", hidden_size=128, intermediate_size=384, steps=0)
export.quantize(folder / "none", folder / "w4a16", scheme="w4a16", calibration_ids=[[1, 2, 3, 4]] * 4)
"""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A fleet whose replicas are vLLM, and which serves a version."""
    folder = tmp_path_factory.mktemp("vllm")
    rig = Rig(folder)
    python = settings.load().python_path("model")
    made = subprocess.run(
        [str(python), "-c", MAKE_BUNDLE, str(folder / "made")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    engine = VllmEngine(rig.layout, settings.load().python_path("serve"))
    rig.fleet.replicas = Replicas(LocalReplicas(rig.supervisor, engine))
    rig.fleet.fetch_bundle = lambda registered: folder / "made" / "w4a16"
    try:
        rig.up()
        rig.registry.give_other_bytes("1", folder_digest(folder / "made" / "w4a16"))
        rig.registry.configure(replicas=1, ready_timeout_s=400.0, kv_cache_mib=32, max_model_len=64)
        results = rig.roll_out("1")
        assert [result.outcome for result in results] == ["done", "done", "healthy", "done", "done"], rig.said
        yield rig
    finally:
        rig.supervisor.stop()


def test_a_real_engine_answers_and_says_its_version(rig: Rig) -> None:
    """Other models are unknown."""
    answer = rig.ask()
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-slipway-version"] == "1"
    assert answer.json()["model"] == MODEL
    assert rig.ask("nobody").status_code == 404


def test_every_answer_says_its_tokens_and_no_stream_ends_with_an_event_without_choices(rig: Rig) -> None:
    """As the engine counted them: whole, streamed, and streamed to a client that asked for its usage; all three are in
    the gateway's log."""
    whole = complete(rig)
    usage = whole.json()["usage"]
    said = (whole.headers["x-slipway-prompt-tokens"], whole.headers["x-slipway-completion-tokens"])
    assert said == (str(usage["prompt_tokens"]), str(usage["completion_tokens"]))
    unasked, asked = (events(complete(rig, stream=True, **more)) for more in ({}, {"stream_options": ASKED}))
    assert [len(event["choices"]) for event in unasked] == [1] * len(unasked)
    assert [len(event["choices"]) for event in asked] == [1] * len(unasked) + [0]
    assert unasked[-1]["usage"]["total_tokens"] == asked[-1]["usage"]["total_tokens"] == usage["total_tokens"]

    def logged() -> list[tuple[float, float]]:
        lines = [json.loads(line) for line in rig.gateway.access_log_path.read_text().splitlines()[-3:]]
        return [
            (
                float(line["prompt_tokens"] or line["stream_prompt_tokens"] or 0),
                float(line["completion_tokens"] or line["stream_completion_tokens"] or 0),
            )
            for line in lines
        ]

    counted = (usage["prompt_tokens"], usage["completion_tokens"])
    assert rig.gateway.wait(lambda: logged() == [counted] * 3, 30), logged()


ASKED = {"include_usage": True}


def complete(rig: Rig, **more: Any) -> httpx.Response:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
        "ignore_eos": True,
        **more,
    }
    headers = {"authorization": f"Bearer {rig.key}"}
    answer = httpx.post(
        f"{rig.gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=60, trust_env=False
    )
    assert answer.status_code == 200, answer.text
    return answer


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]


def test_a_replicas_log_is_json_and_holds_nothing_of_what_clients_say(rig: Rig) -> None:
    """Also where a request is refused or cannot be read. Lines that no logger of Python's wrote are few, and named."""
    secret = "xyzzy plugh"
    for body in (
        {"messages": [{"role": "user", "content": secret}], "max_tokens": 3},
        {"messages": secret},
        {"prompt": 3},
    ):
        httpx.post(
            f"{rig.gateway.url}/v1/chat/completions",
            json={"model": MODEL, **body},
            headers={"authorization": f"Bearer {rig.key}"},
            timeout=30,
            trust_env=False,
        )
    model = rig.state()
    assert model.serving is not None
    served = model.deployment(model.serving.deployment)
    assert served is not None
    lines = rig.layout.log_path(served.replicas[0].id).read_text().splitlines()
    assert len(lines) > 20
    assert not [line for line in lines if secret in line]
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    assert [line for line in lines if not line.startswith("{") and not FOREIGN.fullmatch(line)] == []
    for entry in entries:
        assert {"ts", "level", "logger", "message", "process"} <= entry.keys()
        assert (entry["model"], entry["version"], entry["generation"]) == (
            MODEL,
            served.version,
            str(served.generation),
        )


def test_a_replica_that_has_answered_leaves_its_core_to_others(rig: Rig) -> None:
    """The second after an answer costs it no more than a quarter of a core; spinning took all of it."""
    pids = [state.pid for state in rig.supervisor.states() if state.pid and state.name.startswith("replica-")]
    engine = [child for pid in pids for child in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
    assert rig.ask().status_code == 200
    before, began = used_s(engine), time.monotonic()
    time.sleep(1)
    assert (used_s(engine) - before) / (time.monotonic() - began) < 0.25


def test_a_real_engine_gives_every_figure_that_dashboards_and_rules_ask_for(rig: Rig) -> None:
    """And those that the stand-in replica pretends to have."""
    (replica,) = (replica for found in rig.state().deployments for replica in found.replicas)
    said = httpx.get(f"http://{replica.address}/metrics", trust_env=False).text
    given = {re.split(r"[{ ]", line)[0] for line in said.splitlines() if not line.startswith("#")}
    texts = [
        path.read_text() for room in ("grafana/dashboards", "prometheus/rules") for path in (INFRA / room).iterdir()
    ]
    asked = set(re.findall(r"\b(?:vllm:|process_)\w+", "\n".join(texts)))
    assert len(asked) > 8
    assert asked <= given
    pretended = {re.split(r"[{ ]", line)[0] for line in Metrics().text().splitlines()}
    assert pretended <= given


def used_s(family: list[psutil.Process]) -> float:
    """Processor time so far."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in family))
