"""What every backend must do, written once. A backend's own test module subclasses `BackendConformance` as
`Test…` and gives the fixtures `open_backend` (a new object for the same installation, as another process would make)
and `kill_runner` (ends whatever watches over a job, as a crash would).

Jobs here are one-line programs: what is tested is the backend, not the steps.
"""

import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from slipway_airflow.backends.base import EXIT_DEADLINE, Backend, Claim, JobRequest, JobStatus

WAIT_S = 60
FOREVER = "import time; print('waiting', flush=True); time.sleep(600)"
OpenBackend = Callable[[], Backend]


def request(code: str, **changes: object) -> JobRequest:
    """A job that runs `code`; `{spec}` is its first argument."""
    fields: dict[str, object] = {
        "job_id": f"test-{uuid.uuid4().hex[:12]}",
        "environment": "control",
        "arguments": ("-S", "-c", code, "{spec}"),
        "spec": "{}",
        "deadline_s": 120,
        "claim": Claim(holder="run/task", token="first"),
        **changes,
    }
    return JobRequest.model_validate(fields)


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until, f"waited {WAIT_S} s in vain: {what}"
        time.sleep(0.05)


def finished(backend: Backend, job_id: str) -> JobStatus:
    wait_for(f"{job_id} ends", lambda: backend.status(job_id).state != "running")
    return backend.status(job_id)


def whole_log(backend: Backend, job_id: str) -> str:
    text, offset = "", 0
    while (part := backend.logs(job_id, offset))[0]:
        text, offset = text + part[0], part[1]
    return text


def processes_with(marker: str) -> list[int]:
    """The processes whose command line holds `marker`."""
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and marker in _command_line(entry)
    ]


def _command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


class BackendConformance:
    """The promises of `slipway_airflow.backends.base.Backend`."""

    def test_a_job_gets_its_spec_and_succeeds(self, open_backend: OpenBackend) -> None:
        """The file behind {spec} holds the spec, variables arrive, and the exit code is 0."""
        code = "import os, sys; print(open(sys.argv[1]).read(), os.environ['GREETING'], os.environ['SLIPWAY_JOB_ID'])"
        job = request(code, spec='{"x": "ü"}', variables={"GREETING": "hello"})
        handle = open_backend().submit(job)
        assert not handle.attached
        assert finished(open_backend(), job.job_id) == JobStatus(state="succeeded", exit_code=0)
        assert whole_log(open_backend(), job.job_id) == f'{{"x": "ü"}} hello {job.job_id}\n'

    @pytest.mark.parametrize("code", [1, 64, 65, 75])
    def test_an_exit_code_arrives_unchanged(self, open_backend: OpenBackend, code: int) -> None:
        """What the program says is what the operator decides on."""
        job = request(f"import sys; print('error {code} Why: because'); sys.exit({code})")
        open_backend().submit(job)
        assert finished(open_backend(), job.job_id) == JobStatus(state="failed", exit_code=code)
        assert "because" in whole_log(open_backend(), job.job_id)

    def test_an_unknown_job_is_unknown(self, open_backend: OpenBackend) -> None:
        """Asking about, cancelling or forgetting a job that never was is no error."""
        backend = open_backend()
        assert backend.status("never-was").state == "unknown"
        assert backend.logs("never-was", 0) == ("", 0)
        assert backend.cancel("never-was") is False
        backend.forget("never-was")

    def test_submitting_twice_runs_once(self, open_backend: OpenBackend, tmp_path: Path) -> None:
        """A second submission, through another object, attaches to the living job."""
        marks = tmp_path / "marks"
        job = request(f"open({str(marks)!r}, 'a').write('x'); {FOREVER}")
        first, second = open_backend().submit(job), open_backend().submit(job)
        assert (first.attached, second.attached) == (False, True)
        wait_for("the job has begun", lambda: marks.exists() and marks.read_text() == "x")
        assert open_backend().submit(job).attached
        open_backend().cancel(job.job_id)
        assert marks.read_text() == "x"

    def test_a_finished_job_is_not_run_again_but_a_failed_one_is(
        self, open_backend: OpenBackend, tmp_path: Path
    ) -> None:
        """Success stays; a retry of a failure starts anew, and its log begins where the last one's ended."""
        marks = tmp_path / "marks"
        code = f"import os, sys; n = len(open({str(marks)!r}, 'a+').write('x') and open({str(marks)!r}).read())"
        job = request(code + "; print('attempt', n); sys.exit(75 if n == 1 else 0)")
        backend = open_backend()
        assert backend.submit(job).log_offset == 0
        assert finished(backend, job.job_id).exit_code == 75
        again = backend.submit(job)
        assert not again.attached
        assert finished(backend, job.job_id).state == "succeeded"
        assert backend.logs(job.job_id, again.log_offset)[0] == "attempt 2\n"
        assert backend.submit(job).attached
        assert marks.read_text() == "xx"
        backend.forget(job.job_id)
        assert backend.status(job.job_id).state == "unknown"

    def test_logs_are_read_by_offset_in_whole_lines(self, open_backend: OpenBackend) -> None:
        """Parts of any size add up to the log, and none ends inside a line or a character."""
        job = request("[print('zeile', i, 'ä' * (i % 7)) for i in range(300)]")
        backend = open_backend()
        backend.submit(job)
        finished(backend, job.job_id)
        text, offset = "", 0
        while (part := backend.logs(job.job_id, offset, limit_bytes=200))[0]:
            assert part[0].endswith("\n")
            text, offset = text + part[0], part[1]
        assert text.splitlines() == [f"zeile {i} {'ä' * (i % 7)}" for i in range(300)]

    def test_lines_arrive_while_the_job_runs(self, open_backend: OpenBackend) -> None:
        """Progress is seen live, a progress bar by its latest state."""
        job = request(r"print('50%\r100%', flush=True); " + FOREVER)
        backend = open_backend()
        backend.submit(job)
        wait_for("both lines", lambda: whole_log(backend, job.job_id) == "100%\nwaiting\n")
        assert backend.status(job.job_id).state == "running"
        backend.cancel(job.job_id)

    def test_nodes_see_each_other(self, open_backend: OpenBackend) -> None:
        """Each node knows its rank, how many there are and where they meet, and can reach the others there."""
        code = """
import json, os, socket, time
rank, nodes = int(os.environ["SLIPWAY_NODE_RANK"]), int(os.environ["SLIPWAY_NODES"])
host, port = os.environ["SLIPWAY_RENDEZVOUS"].split(":")
if rank == 0:
    with socket.create_server(("", int(port))) as server:
        ranks = sorted(int(server.accept()[0].recv(9)) for _ in range(nodes - 1))
    print(json.dumps(ranks))
else:
    until = time.monotonic() + 30
    while True:
        try:
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(str(rank).encode())
            break
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)
    print("met")
"""
        job = request(code, nodes=3)
        open_backend().submit(job)
        assert finished(open_backend(), job.job_id).state == "succeeded"
        lines = whole_log(open_backend(), job.job_id).splitlines()
        assert sorted(lines) == ["[1, 2]", "[node 1] met", "[node 2] met"]

    def test_a_failed_node_ends_the_others_and_its_verdict_counts(self, open_backend: OpenBackend) -> None:
        """Node 1 names a cause, node 0 would wait for it for ever."""
        code = f"import os, sys\nif os.environ['SLIPWAY_NODE_RANK'] == '1': sys.exit(65)\n{FOREVER}"
        job = request(code, nodes=2)
        open_backend().submit(job)
        assert finished(open_backend(), job.job_id) == JobStatus(state="failed", exit_code=65)
        wait_for("no process is left", lambda: not processes_with(job.job_id))

    def test_a_killed_node_is_transient(self, open_backend: OpenBackend) -> None:
        """kill -9 from outside says nothing about the work, so it is worth another try."""
        job = request("import os; os.kill(os.getpid(), 9)")
        open_backend().submit(job)
        assert finished(open_backend(), job.job_id) == JobStatus(state="failed", exit_code=75)
        assert "killed from outside (SIGKILL)" in whole_log(open_backend(), job.job_id)

    def test_the_deadline_ends_the_job_with_nobody_watching(self, open_backend: OpenBackend) -> None:
        """The limit is the job's own, and the log names it."""
        marker = uuid.uuid4().hex
        job = request(f"marker = '{marker}'; {FOREVER}", deadline_s=1, nodes=2)
        open_backend().submit(job)
        assert finished(open_backend(), job.job_id) == JobStatus(state="failed", exit_code=EXIT_DEADLINE)
        assert "ran past its deadline of 1 s" in whole_log(open_backend(), job.job_id)
        assert not processes_with(marker)

    def test_cancelling_leaves_no_process(self, open_backend: OpenBackend) -> None:
        """Not even one that ignores SIGTERM's kinder forms by having left for a session of its own."""
        marker = uuid.uuid4().hex
        child = f"marker = '{marker}'; import time; time.sleep(600)"
        code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)"
        job = request(f"{code}; {FOREVER}")
        backend = open_backend()
        backend.submit(job)
        wait_for("job and child run", lambda: len(processes_with(marker)) >= 2)
        assert open_backend().cancel(job.job_id) is True
        assert not processes_with(marker)
        assert backend.status(job.job_id).state == "cancelled"
        assert backend.cancel(job.job_id) is False

    def test_a_job_that_two_want_ends_when_both_have_let_go(self, open_backend: OpenBackend) -> None:
        """A run that is stopped does not take the job from another run that waits for the same artifact."""
        job = request(FOREVER)
        other = Claim(holder="other-run/task", token="only")
        backend = open_backend()
        backend.submit(job)
        backend.submit(job.model_copy(update={"claim": other}))
        assert backend.cancel(job.job_id, other) is False
        assert backend.status(job.job_id).state == "running"
        assert backend.cancel(job.job_id, job.claim) is True
        assert backend.status(job.job_id).state == "cancelled"

    def test_a_try_that_was_replaced_cannot_end_its_successors_job(self, open_backend: OpenBackend) -> None:
        """The old try's late farewell must not hit the new try, which has attached to the same job."""
        job = request(FOREVER)
        backend = open_backend()
        backend.submit(job)
        backend.submit(job.model_copy(update={"claim": Claim(holder="run/task", token="second")}))
        assert backend.cancel(job.job_id, job.claim) is False
        assert backend.status(job.job_id).state == "running"
        backend.cancel(job.job_id)

    def test_claims_are_found_by_their_holder_until_it_lets_go(self, open_backend: OpenBackend) -> None:
        """With the newest try's token; nobody else's claims are among them."""
        job = request(FOREVER, claim=Claim(holder=f"run/{uuid.uuid4().hex}", token="first"))
        newer = Claim(holder=job.claim.holder, token="second")
        backend = open_backend()
        assert backend.claims_of(newer.holder) == []
        backend.submit(job)
        backend.submit(job.model_copy(update={"claim": newer}))
        assert open_backend().claims_of(newer.holder) == [(job.job_id, newer)]
        assert backend.cancel(job.job_id, newer) is True
        assert backend.claims_of(newer.holder) == []

    def test_a_lost_job_is_noticed_cleared_away_and_started_anew(
        self, open_backend: OpenBackend, kill_runner: Callable[[str], None]
    ) -> None:
        """When whatever watches over a job dies, its processes go too, and the next submission starts it."""
        marker = uuid.uuid4().hex
        job = request(f"marker = '{marker}'; {FOREVER}", nodes=2)
        backend = open_backend()
        backend.submit(job)
        wait_for("both nodes run", lambda: whole_log(backend, job.job_id).count("waiting") == 2)
        kill_runner(job.job_id)
        wait_for("the loss is noticed", lambda: backend.status(job.job_id).state == "lost")
        wait_for("no process is left", lambda: not processes_with(marker))
        assert not backend.submit(job).attached
        assert backend.status(job.job_id).state == "running"
        backend.cancel(job.job_id)

    def test_secrets_show_neither_in_a_command_line_nor_in_a_file(
        self, open_backend: OpenBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They reach the job through its environment alone."""
        secret = f"secret-{uuid.uuid4().hex}"
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        proof = tmp_path / "proof"
        digest = "import hashlib, os; d = hashlib.sha256(os.environ['AWS_SECRET_ACCESS_KEY'].encode()).hexdigest()"
        job = request(f"{digest}; open({str(proof)!r}, 'w').write(d); {FOREVER}")
        backend = open_backend()
        backend.submit(job)
        wait_for("the job has read its secret", lambda: proof.exists() and bool(proof.read_text()))
        assert not processes_with(secret)
        assert secret not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
        backend.cancel(job.job_id)

    def test_reaping_drops_what_ended_and_keeps_what_runs(self, open_backend: OpenBackend) -> None:
        """Records of ended jobs go after a while; a running job is never touched."""
        done, running = request("print(1)"), request(FOREVER)
        backend = open_backend()
        backend.submit(done)
        backend.submit(running)
        finished(backend, done.job_id)
        assert backend.reap(keep_s=3600) == 0
        assert backend.reap(keep_s=-1) == 1
        assert backend.status(done.job_id).state == "unknown"
        assert backend.status(running.job_id).state == "running"
        backend.cancel(running.job_id)

    def test_a_job_outlives_the_process_that_submitted_it(
        self, submit_elsewhere: Callable[[JobRequest], None], open_backend: OpenBackend
    ) -> None:
        """A worker may end right after submitting; the job goes on and is found from here."""
        job = request("import time; time.sleep(0.5); print('still here')")
        submit_elsewhere(job)
        assert finished(open_backend(), job.job_id).state == "succeeded"
        assert whole_log(open_backend(), job.job_id) == "still here\n"
