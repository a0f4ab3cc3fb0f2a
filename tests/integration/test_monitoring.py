"""What can be seen of a fleet while it works: a real Prometheus asks a real gateway, the exporter and stand-in replicas
during a rollout that is refused, and the command line watches it.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fleet_rig import MODEL, Rig
from prometheus_server import Prometheus, prometheus_server

from pipeline.fleet import exporter, gateway
from pipeline.fleet.state import ModelFleet
from pipeline.settings import ROOT
from pipeline.stack.layout import Ports

pytestmark = [pytest.mark.integration, pytest.mark.needs("prometheus")]

WAIT_S = 30.0
ERROR_RATIO = 'slipway:version_error_ratio:rate1m{version="3",role="canary"}'


@dataclass
class Seen:
    """A fleet that has promoted version 1, promoted version 2 and refused version 3, with clients all the time."""

    rig: Rig
    prometheus: Prometheus
    began: float
    watched: "subprocess.CompletedProcess[str]"
    """`slipway rollout status --watch` during the rollout of version 3."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    rig = Rig(tmp_path_factory.mktemp("monitoring"))
    rig.up()
    rig.supervisor.put(exporter.program(rig.layout))
    rig.registry.configure(replicas=1, steps=[50, 100], step_s=2.0, min_requests=5)
    folder = rig.home_path / "prometheus"
    folder.mkdir()
    try:
        with prometheus_server(rig.layout, folder) as prometheus:
            began = time.time()
            rig.roll_out("1")
            with rig.load():
                stream(rig)
                rig.roll_out("2")
                watched = watch_rollout_of(rig, prometheus, "3")
                stream(rig)
                yield Seen(rig, prometheus, began, watched)
    finally:
        rig.supervisor.stop()


def stream(rig: Rig) -> None:
    """One answer in pieces, so that there are times between tokens."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    headers = {"authorization": f"Bearer {rig.key}"}
    answer = httpx.post(
        f"{rig.gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=30, trust_env=False
    )
    assert answer.text.endswith("data: [DONE]\n\n")


def slipway(rig: Rig, *arguments: str) -> "subprocess.Popen[str]":
    """The command line, in a process of its own."""
    environment = {"PYTHONPATH": str(ROOT), "SLIPWAY_HOME": str(rig.home_path), "LANG": "C.UTF-8"}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.commands", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def watch_rollout_of(rig: Rig, prometheus: Prometheus, version: str) -> "subprocess.CompletedProcess[str]":
    """What somebody sees who looks from the rollout's beginning on. The version begins to fail once it has traffic, and
    is judged after Prometheus has seen it."""
    rig.registry.set_alias(MODEL, "champion", version)
    planned = rig.phase("plan", request_id="watched")
    watching = slipway(rig, "rollout", "status", MODEL, "--watch")
    try:
        assert watching.stdout is not None
        first = watching.stdout.readline()
        rig.phase("start_canary", request_id="watched", generation=planned.generation)
        rig.behave(version, error_rate=1.0)
        rig.fleet.change(MODEL, planned.generation, lambda model: model.changed(weights={2: 50, 3: 50}))
        wait("Prometheus has seen the errors", lambda: prometheus.ask(f"{ERROR_RATIO} > 0.5"))
        rig.phase("shift", request_id="watched", generation=planned.generation)
        rig.phase("roll_back", request_id="watched", generation=planned.generation)
        out, err = watching.communicate(timeout=WAIT_S)
    finally:
        watching.kill()
        watching.communicate()
    return subprocess.CompletedProcess(watching.args, watching.returncode, first + out, err)


def wait(what: str, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S:g} s: {what}"
        time.sleep(0.2)


def test_every_part_of_the_stack_gives_its_figures(seen: Seen) -> None:
    """Prometheus finds the gateway, the exporter, and the replicas that the fleet's state names."""
    wanted = {"gateway": 1, "fleet": 1, "replicas": 1, "prometheus": 1}
    wait("all targets answer", lambda: seen.prometheus.healthy_targets() == wanted)


@pytest.mark.parametrize("path", ["/stats/prometheus", "/metrics"])
def test_no_figure_can_be_had_at_the_gateways_port(seen: Seen, path: str) -> None:
    """Not even with a client's key."""
    headers = {"authorization": f"Bearer {seen.rig.key}"}
    assert httpx.get(f"{seen.rig.gateway.url}{path}", headers=headers, trust_env=False).status_code == 404


def test_the_exporter_says_what_is_served_and_how_rollouts_ended(seen: Seen) -> None:
    """As the fleet's state has it."""
    ask = seen.prometheus.value
    wait(
        "the refused rollout is counted",
        lambda: ask(f'slipway_rollouts_total{{model="{MODEL}",outcome="failed"}}') == 1,
    )
    assert ask(f'slipway_rollouts_total{{model="{MODEL}",outcome="promoted"}}') == 2
    assert ask(f'slipway_fleet_serving_info{{model="{MODEL}",version="2"}}') == 1
    wait("its canary is gone", lambda: not seen.prometheus.ask('slipway_fleet_replicas{role="canary"}'))
    assert ask('slipway_fleet_replicas{role="serving",health="healthy"}') == 1
    assert max(seen.prometheus.over("slipway_rollout_running", since=seen.began)) == 1


def test_the_gateways_figures_go_by_the_names_of_versions(seen: Seen) -> None:
    """Rules join them by the name that the gateway has for a deployment."""
    wait(
        "requests by version",
        lambda: seen.prometheus.over('slipway:version_requests:rate1m{version="2"}', since=seen.began),
    )
    assert max(seen.prometheus.over(ERROR_RATIO, since=seen.began)) > 0.5


def test_a_refused_version_is_an_alert(seen: Seen) -> None:
    """And nothing that clients would notice is one."""
    firing = 'ALERTS{alertstate="firing"}'
    wait("the alert", lambda: seen.prometheus.ask('ALERTS{alertname="SlipwayRolloutFailed",alertstate="firing"}'))
    names = {found["metric"]["alertname"] for found in seen.prometheus.ask(firing)}
    assert not names & {
        "SlipwayGatewayDown",
        "SlipwayNoHealthyReplica",
        "SlipwayExporterDown",
        "SlipwayErrorBudgetBurnsFast",
    }


DASHBOARDS = sorted((ROOT / "infra" / "grafana" / "dashboards").glob("*.json"))
EMPTY = {
    "envoy_server_days_until_first_cert_expiring < 3650": "the rig has no certificate",
    "sum by (model, replica, kind) (slipway_fleet_replica_aside)": "none of the rig's replicas is bad",
}
"""Queries that give nothing here, and why."""


def queries(dashboard: Path) -> list[str]:
    """All that its panels ask."""
    return [target["expr"] for panel in json.loads(dashboard.read_text())["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_every_query_of_the_dashboards_has_figures(seen: Seen, dashboard: Path) -> None:
    """Grafana would show an empty panel and no error. What is declared empty must be so, or the reason is gone."""
    open_ = [query for query in queries(dashboard) if query not in EMPTY]
    deadline = time.monotonic() + WAIT_S
    while open_ := [query for query in open_ if not seen.prometheus.over(query, since=seen.began)]:
        assert time.monotonic() < deadline, "\n".join(open_)
        time.sleep(0.2)
    declared = [query for query in queries(dashboard) if query in EMPTY]
    assert not [query for query in declared if seen.prometheus.over(query, since=seen.began)]


def test_whoever_watches_a_rollout_sees_it_refused_and_why(seen: Seen) -> None:
    """From its first line to its end, and the exit code for programs."""
    assert seen.watched.returncode == 65, seen.watched.stderr
    lines = seen.watched.stdout.splitlines()
    assert "waits for its replicas" in lines[0]
    assert "failed" in lines[-1]
    assert "worse, beyond max_error_rate" in lines[-1]


def test_the_fleet_is_shown_with_the_gateways_view_of_it(seen: Seen) -> None:
    """`slipway fleet`, while it works."""
    with slipway(seen.rig, "fleet", MODEL) as asked:
        said, _ = asked.communicate(timeout=WAIT_S)
    assert "serving version 2 (generation 2)" in said
    assert "healthy" in said
    assert "100 %" in said


def test_the_gateways_own_log_is_json(seen: Seen) -> None:
    """What keeps it running, and Envoy itself, which says more when it is asked to check its configuration."""
    layout = seen.rig.layout
    lines = layout.log_path(gateway.PROGRAM).read_text().splitlines()
    command = [part.replace("warning", "info") for part in gateway.envoy_command(layout.gateway_path)]
    checked = subprocess.run([*command, "--mode", "validate"], capture_output=True, text=True, check=True)
    assert len(checked.stderr.splitlines()) > 3
    for line in [*lines, *checked.stderr.splitlines()]:
        assert {"ts", "level", "logger", "message"} <= json.loads(line).keys()


def test_chat_says_which_version_answered_and_the_requests_id(seen: Seen) -> None:
    """So that the answer can be traced."""
    with slipway(seen.rig, "chat", MODEL, "--message", "hi") as asked:
        said, _ = asked.communicate(timeout=WAIT_S)
    assert re.search(r"word0 .*\n.*tiny version 2 \(generation 2\), request [0-9a-f-]{36}", said)


def test_a_canary_that_there_is_not_is_not_asked(seen: Seen) -> None:
    """Instead of showing another version's answer."""
    with slipway(seen.rig, "chat", MODEL, "--message", "hi", "--canary") as asked:
        _, why = asked.communicate(timeout=WAIT_S)
    assert (asked.returncode, "has no canary now" in why) == (64, True)


def test_a_damaged_file_is_told_to_prometheus_and_the_rest_is_too(tmp_path: Path) -> None:
    """Its reason is in the log, once. `up` is 0 where nothing can be read at all."""
    rig = Rig(tmp_path)
    rig.layout.create()
    ports: Ports = rig.layout.choose_ports()
    rig.fleet.files.write(ModelFleet(name="whole", generation=7))
    models = rig.layout.fleet_path / "models"
    (models / "m.json").write_text("{")
    environment = {"PYTHONPATH": str(ROOT), "SLIPWAY_HOME": str(tmp_path)}
    command = exporter.program(rig.layout).command
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait("the exporter listens", lambda: answers(ports.url("metrics")))
            for _ in range(2):
                answer = httpx.get(exporter.url(rig.layout), trust_env=False)
                assert answer.status_code == 200
                assert 'slipway_fleet_generation{model="whole"} 7\n' in answer.text
                assert 'slipway_fleet_file_damaged{model="m",file="models/m.json"} 1\n' in answer.text
            (models / "m.json").unlink()
            (models / "m.json").mkdir()
            assert httpx.get(exporter.url(rig.layout), trust_env=False).status_code == 500
            assert httpx.get(f"{ports.url('metrics')}/", trust_env=False).status_code == 404
        finally:
            process.terminate()
            _, said = process.communicate(timeout=WAIT_S)
    first, second = map(json.loads, said.splitlines())
    assert "m.json is damaged (Invalid JSON" in first["message"]
    assert "Is a directory" in second["message"]


def answers(url: str) -> bool:
    try:
        return bool(httpx.get(url, trust_env=False).status_code)
    except httpx.TransportError:
        return False
