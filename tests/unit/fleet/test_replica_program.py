"""How a replica is started, and the version on its answers."""

import asyncio
import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.digests import folder_digest
from pipeline.contracts.rollout import Rollout
from pipeline.fleet import vllm
from pipeline.fleet.local_replicas import PORTS, LocalReplicas, VllmEngine
from pipeline.fleet.replica_middleware import VARIABLES, Door, Version
from pipeline.fleet.replicas import replica_id
from pipeline.fleet.state import Replica
from pipeline.fleet.vllm import ReplicaPlan
from pipeline.settings import ROOT
from pipeline.stack.layout import LOOPBACK, Layout
from pipeline.stack.supervisor import Program, Supervisor


def plan_of(tmp_path: Path) -> ReplicaPlan:
    """Of a replica of what lies in `bundle`."""
    return ReplicaPlan(
        replica=Replica(id=replica_id("m", "3", generation=7, index=0), port=20_001),
        model="m",
        version="3",
        generation=7,
        bundle_path=tmp_path / "bundle",
        settings=Rollout(kv_cache_mib=64, max_model_len=512),
        core=1,
        door="the fleet's secret",
    )


def program_of(tmp_path: Path) -> Program:
    return VllmEngine(Layout(tmp_path), Path("/venvs/serve/bin/python")).program(plan_of(tmp_path))


def test_a_replica_listens_on_loopback_and_drains_before_it_ends(tmp_path: Path) -> None:
    """SIGKILL comes later than the engine's own patience."""
    program = program_of(tmp_path)
    options = dict(itertools.pairwise(program.command))
    assert program.name == "replica-m-v3-g7-0"
    assert options["--host"] == "127.0.0.1"
    assert options["--served-model-name"] == "m"
    assert options["--kv-cache-memory-bytes"] == str(64 * 1024 * 1024)
    assert options["--max-model-len"] == "512"
    assert program.stop_wait_s > int(options["--shutdown-timeout"])
    assert program.environment["VLLM_CPU_OMP_THREADS_BIND"] == "1"


def test_an_adapter_answers_under_the_models_name(tmp_path: Path) -> None:
    """With room for its rank; the base model goes by another name, which no route leads to."""
    adapter = tmp_path / "bundle" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text('{"r": 12, "target_modules": ["q_proj"]}')
    options = dict(itertools.pairwise(program_of(tmp_path).command))
    assert options["--served-model-name"] == "m.base"
    assert options["--lora-modules"] == f"m={adapter}"
    assert (options["--max-lora-rank"], options["--lora-target-modules"]) == ("16", "q_proj")


def test_replicas_get_ports_of_their_own(tmp_path: Path) -> None:
    """Not one that another replica has been given already."""
    host = LocalReplicas(Supervisor(tmp_path), VllmEngine(Layout(tmp_path), Path("python")))
    taken = {f"{LOOPBACK}:{port}" for port in PORTS[:-3]}
    assert set(host.places(3, taken)) <= {(LOOPBACK, port) for port in PORTS[-3:]}
    assert len(set(host.places(20, set()))) == 20


def test_every_answer_says_which_version_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the headers that the engine sends itself; other kinds of connection pass unchanged."""
    for variable, value in zip(VARIABLES.values(), ("m", "3", "7"), strict=True):
        monkeypatch.setenv(variable, value)
    sent: list[Any] = []

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": f"{scope['type']}.response.start", "headers": [(b"content-type", b"text/plain")]})

    async def send(message: Any) -> None:
        sent.append(message["headers"])

    async def receive() -> Any:
        return {}

    for kind in ("http", "websocket"):
        asyncio.run(Version(engine)({"type": kind}, receive, send))
    own = (b"content-type", b"text/plain")
    assert sent == [
        [own, (b"x-slipway-model", b"m"), (b"x-slipway-version", b"3"), (b"x-slipway-generation", b"7")],
        [own],
    ]


def test_the_middleware_needs_nothing_but_the_standard_library() -> None:
    """It is imported inside the engine's environment."""
    paths = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
    code = "import pipeline.fleet.replica_middleware, pipeline.fleet.replica_usage"
    subprocess.run([sys.executable, "-I", "-S", "-c", f"{paths}; {code}"], check=True)


def asked(path: str, *given: bytes, kind: str = "http") -> list[Any]:
    """What a replica's door lets an engine answer, or answers itself."""
    sent: list[Any] = []

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        await send("answered")

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nobody reads what a stranger says")

    headers = [(b"x-slipway-door", value) for value in given]
    asyncio.run(Door(engine)({"type": kind, "path": path, "headers": headers}, receive, send))
    return sent


@pytest.fixture
def _door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPWAY_REPLICA_DOOR", hashlib.sha256(b"secret").hexdigest())


@pytest.mark.usefixtures("_door")
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/invocations", "/tokenize", "/v1/models", "/health/", "/"])
def test_a_replica_answers_those_who_know_the_secret_alone(path: str) -> None:
    """Not its digest, not two of them, and no socket either."""
    assert asked(path, b"secret") == ["answered"]
    digest = hashlib.sha256(b"secret").hexdigest().encode()
    for given in ((), (b"",), (b"wrong",), (digest,), (b"secret", b"secret"), (b"wrong", b"secret")):
        assert asked(path, *given)[0]["status"] == 403
        assert asked(path, *given, kind="websocket") == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.usefixtures("_door")
def test_health_and_figures_are_open_for_those_who_watch() -> None:
    """The supervisor and Prometheus know no secret."""
    assert asked("/health") == asked("/metrics") == ["answered"]


def test_a_replica_is_told_the_secrets_digest_alone(tmp_path: Path) -> None:
    """Its command line and its environment can be read by others."""
    program = program_of(tmp_path)
    assert "the fleet's secret" not in str(program)
    assert program.environment["SLIPWAY_REPLICA_DOOR"] == hashlib.sha256(b"the fleet's secret").hexdigest()
    assert "--middleware=pipeline.fleet.replica_middleware.Door" in program.command


def test_a_replicas_bundle_is_read_before_the_engine_loads_it(tmp_path: Path) -> None:
    """By whoever starts its process, each time; a plan of an earlier release does not know its digest."""
    plan = plan_of(tmp_path)
    checked = vllm.command(plan.model_copy(update={"bundle_digest": "0" * 64}), Path("python"))
    unchecked = vllm.command(plan, Path("python"))
    check = ("python", "-m", "pipeline.fleet.replica_start", "0" * 64, str(tmp_path / "bundle"))
    assert checked == (*check, *unchecked)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"signed weights")
    return folder


def start(bundle: Path, digest: str) -> subprocess.CompletedProcess[str]:
    engine = (sys.executable, "-c", "import os; print('loaded by', os.getppid())")
    command = (sys.executable, "-m", "pipeline.fleet.replica_start", digest, str(bundle), *engine)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_what_was_signed_is_loaded_by_the_process_that_was_started(bundle: Path) -> None:
    """The supervisor knows it by its number."""
    done = start(bundle, folder_digest(bundle))
    assert (done.returncode, done.stdout) == (0, f"loaded by {os.getpid()}\n")


@pytest.mark.parametrize("name", ["model.safetensors", "another.json"])
def test_bytes_that_changed_since_the_rollout_are_not_loaded(bundle: Path, name: str) -> None:
    """Nor what was added; the log says so."""
    digest = folder_digest(bundle)
    (bundle / name).write_bytes(b"other weights")
    done = start(bundle, digest)
    assert done.returncode == 65
    entry = json.loads(done.stdout)
    assert entry["level"] == "error"
    assert f"its digest is {folder_digest(bundle)}, expected {digest}" in entry["message"]
