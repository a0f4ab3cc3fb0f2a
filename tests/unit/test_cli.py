"""The entry point of every step: exit codes, reuse, locks, and a clean end."""

import errno
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from pipeline import artifacts, cli
from pipeline.artifacts.uris import file_uri
from pipeline.contracts.base import step_key
from pipeline.contracts.manifest import Manifest
from pipeline.contracts.specs import STEPS, PromoteResult, RolloutSpec
from pipeline.errors import DataError, GateRefused, IntegrityError, SpecError, TransientError
from pipeline.job import Job
from pipeline.settings import ROOT
from tests.artifact_samples import manifest_of, write_files

SPEC = RolloutSpec(name="bank", generation=1, phase="plan", request_id="test")
KEY = step_key("rollout", STEPS["rollout"].version, SPEC)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments that run a rollout step with a home of its own."""
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "home"))
    (tmp_path / "spec.json").write_text(SPEC.model_dump_json())
    return ["rollout", "--spec", str(tmp_path / "spec.json"), "--out", f"{file_uri(tmp_path / 'store')}/rollout/{KEY}"]


def pretend(monkeypatch: pytest.MonkeyPatch, run: Callable[[object, Job], object]) -> None:
    """Puts `run` in the place of the rollout step."""
    module = ModuleType("pipeline.steps.rollout")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipeline.steps.rollout", module)


def done(_: object, job: Job) -> object:
    (job.staging_path / "note.txt").write_text("done")
    job.figures["seconds"] = 1.5
    return STEPS["rollout"].result(
        name="bank",
        generation=1,
        phase="plan",
        outcome="done",
        reason="all well",  # type: ignore[call-arg]
    )


def raising(error: BaseException) -> Callable[[object, Job], object]:
    def run(_: object, job: Job) -> object:
        (job.work_path / "scratch").write_text("x")
        raise error

    return run


def test_a_step_publishes_its_files_result_and_origin(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """And leaves no scratch."""
    pretend(monkeypatch, done)

    assert cli.main(command) == 0

    manifest = artifacts.read_manifest(command[-1])
    assert {file.path for file in manifest.files} == {"note.txt", "result.json"}
    assert manifest.result["outcome"] == "done"
    assert manifest.figures == {"seconds": 1.5}
    assert manifest.code_version.startswith("0.")
    assert f"published {command[-1]} digest {manifest.digest}" in capsys.readouterr().out
    assert not (tmp_path / "home" / "work" / "rollout" / KEY).exists()


def test_a_finished_step_is_reused(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its code does not run again."""
    pretend(monkeypatch, done)
    cli.main(command)
    pretend(monkeypatch, raising(AssertionError("it ran again")))

    assert cli.main(command) == 0
    assert f"reused {command[-1]}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SpecError("no"), 64),
        (DataError("no"), 65),
        (GateRefused("no"), 65),
        (TransientError("no"), 75),
        (ConnectionRefusedError(), 75),
        (TimeoutError(), 75),
        (OSError(errno.ENOSPC, "full"), 75),
        (OSError(errno.EIO, "broken"), 75),
    ],
)
def test_an_error_becomes_its_exit_code(
    error: Exception, code: int, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one line that says code, kind and message."""
    pretend(monkeypatch, raising(error))

    assert cli.main(command) == code
    assert capsys.readouterr().err.startswith(f"error {code} {type(error).__name__}: ")
    assert artifacts.find_manifest(command[-1]) is None


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), OSError("x"), KeyError("x")])
def test_a_bug_stays_a_bug(error: Exception, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file of our own making must not look like something that a retry heals."""
    pretend(monkeypatch, raising(error))

    with pytest.raises(type(error)):
        cli.main(command)


@pytest.mark.parametrize(("error", "kept"), [(TransientError("x"), True), (DataError("x"), False)])
def test_scratch_is_kept_only_where_a_retry_can_use_it(
    error: Exception, kept: bool, command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After bad data there is nothing to resume."""
    pretend(monkeypatch, raising(error))
    cli.main(command)

    assert (tmp_path / "home" / "work" / "rollout" / KEY / "scratch").exists() is kept


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (TransientError("x"), True),
        (SpecError("the key may not write"), True),
        (IntegrityError("a part is damaged"), True),
        (DataError("the loss is no number"), False),
        (None, False),
    ],
    ids=["transient", "refused", "damaged", "diverged", "published"],
)
def test_checkpoints_are_kept_while_anybody_may_go_on_from_them(
    error: Exception | None, kept: bool, command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also by correcting a setting, or by removing the damaged one of them."""
    checkpoint = tmp_path / "store" / "checkpoints" / KEY / "step-00000010" / "complete"

    def run(spec: object, job: Job) -> object:
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_text("digest")
        assert checkpoint.is_relative_to(job.checkpoints_uri.removeprefix("file://"))
        if error:
            raise error
        return done(spec, job)

    pretend(monkeypatch, run)
    cli.main(command)

    assert checkpoint.exists() is kept
    assert checkpoint.parent.parent.exists() is kept


def test_what_a_killed_attempt_staged_is_not_published(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only this attempt's files are."""
    leftover = tmp_path / "home" / "work" / "rollout" / KEY / "staging" / "leftover"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("old")
    pretend(monkeypatch, done)

    cli.main(command)

    assert {file.path for file in artifacts.read_manifest(command[-1]).files} == {"note.txt", "result.json"}


def test_a_step_that_returns_another_steps_result_is_a_bug(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is published."""
    other = PromoteResult.model_construct()
    pretend(monkeypatch, lambda *_: other)

    with pytest.raises(TypeError, match="rollout returned PromoteResult, expected RolloutResult"):
        cli.main(command)
    assert artifacts.find_manifest(command[-1]) is None


def test_a_wrong_command_line_is_a_bad_spec(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown steps, missing or broken specs, and a place that is not the spec's."""
    Path(command[2]).with_name("broken.json").write_text('{"name": ')
    wrong = [
        ["dance", *command[1:]],
        command[:3],
        [*command[:2], "/gone.json", *command[3:]],
        [*command[:2], str(Path(command[2]).with_name("broken.json")), *command[3:]],
        [*command[:4], command[4].replace(KEY, "0" * 64)],
        [*command[:4], f"http://x/rollout/{KEY}"],
    ]
    assert [cli.main(arguments) for arguments in wrong] == [64] * len(wrong)
    assert cli.main(["--help"]) == 0
    assert "Exit codes" in capsys.readouterr().out


SLEEPER = """
import subprocess, sys, types
from pipeline import cli
def run(spec, job):
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE)
    child.stdout.readline()
    print("child", child.pid, flush=True)
    child.wait()
step = types.ModuleType("pipeline.steps.rollout")
step.run = run
sys.modules["pipeline.steps.rollout"] = step
sys.exit(cli.main(sys.argv[1:]))
"""
PATIENT = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


@contextmanager
def sleeping_step(command: list[str], child: str = PATIENT) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A step that waits for its child, and the child."""
    program = f"CHILD = {child!r}\n{textwrap.dedent(SLEEPER)}"
    with subprocess.Popen(
        [sys.executable, "-c", program, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as step:
        assert step.stdout is not None
        word, pid = step.stdout.readline().split()
        assert word == "child"
        grandchild = psutil.Process(int(pid))
        try:
            yield step, grandchild
        finally:
            step.kill()
            if grandchild.is_running():
                grandchild.kill()


def test_a_cancelled_step_takes_its_children_with_it(command: list[str]) -> None:
    """SIGTERM ends both, and the exit code says so."""
    with sleeping_step(command) as (step, child):
        step.send_signal(signal.SIGTERM)

        assert step.wait(timeout=30) == 143
        assert not child.is_running()


def test_a_child_that_ignores_the_request_is_killed(command: list[str]) -> None:
    """After a short grace, even where more requests arrive meanwhile."""
    with sleeping_step(command, STUBBORN) as (step, child):
        step.send_signal(signal.SIGTERM)
        step.send_signal(signal.SIGTERM)

        assert step.wait(timeout=30) == 143
        assert not child.is_running()


def test_a_second_job_with_the_same_key_waits_and_reuses(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Two releases that need the same step run it once."""
    pretend(monkeypatch, done)
    with sleeping_step(command) as (step, _):
        second = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        with second:
            assert second.stdout is not None
            assert second.stdout.readline().startswith("waiting: another job runs rollout with the same key")
            manifest = publish_meanwhile(command[-1], tmp_path)
            step.kill()
            assert second.stdout.readline().startswith(f"reused {command[-1]} (finished {manifest.started_at}")
            assert second.wait(timeout=30) == 0


def publish_meanwhile(uri: str, tmp_path: Path) -> Manifest:
    """What the first job would have published."""
    folder = write_files(tmp_path / "made", {"a": 1})
    return artifacts.publish(uri, folder, manifest_of(folder, step="rollout", key=KEY))


def test_other_nodes_of_the_same_job_do_not_wait_and_publish_nothing(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All nodes of one job share its scratch; only the first publishes."""
    monkeypatch.setenv("SLIPWAY_JOB_ID", "job-1")
    monkeypatch.setenv("SLIPWAY_NODES", "2")
    with sleeping_step(command):
        monkeypatch.setenv("SLIPWAY_NODE_RANK", "1")
        pretend(monkeypatch, lambda *_: None)

        assert cli.main(command) == 0
        assert artifacts.find_manifest(command[-1]) is None


def test_another_node_of_another_job_waits(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the first job is gone."""
    monkeypatch.setenv("SLIPWAY_JOB_ID", "job-1")
    monkeypatch.setenv("SLIPWAY_NODES", "2")
    with sleeping_step(command) as (step, child):
        monkeypatch.setattr(time, "sleep", lambda _: (step.kill(), step.wait(), child.kill()))
        monkeypatch.setenv("SLIPWAY_JOB_ID", "job-2")
        monkeypatch.setenv("SLIPWAY_NODE_RANK", "1")
        pretend(monkeypatch, lambda *_: None)

        assert cli.main(command) == 0
        assert step.poll() is not None


def test_children_from_before_the_step_are_left_alone(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the step started ends with it."""
    with subprocess.Popen([sys.executable, "-c", PATIENT]) as before:
        started: list[subprocess.Popen[bytes]] = []

        def run(spec: object, job: Job) -> object:
            started.append(subprocess.Popen([sys.executable, "-c", PATIENT]))
            return done(spec, job)

        pretend(monkeypatch, run)
        try:
            assert cli.main(command) == 0
            assert before.poll() is None
            assert not psutil.pid_exists(started[0].pid)
            started[0].wait()
        finally:
            before.kill()
