"""Runs `python -m pipeline finetune` as a backend would: one process a node, in the model environment."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import artifacts, settings
from pipeline.artifacts.digests import file_entries
from pipeline.artifacts.transfer import content_root
from pipeline.contracts.base import ArtifactRef, FileRef, step_key
from pipeline.contracts.finetune import Finetune
from pipeline.contracts.manifest import Manifest, manifest_digest
from pipeline.contracts.recipe import BaseModelSource, Validation
from pipeline.contracts.specs import FinetuneSpec, ValidateResult, ValidateSpec
from slipway_airflow.backends.base import Claim, JobRequest
from slipway_airflow.backends.process import ProcessBackend

ROOT = Path(__file__).resolve().parents[3]
DEADLINE_S = 600.0
INIT = {"init": {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_layers": 1, "num_heads": 2}}


def rows(count: int = 96) -> list[dict[str, Any]]:
    """Chat rows of different lengths."""
    things = ("parcel", "refund", "account", "invoice")
    return [
        {
            "messages": [
                {"role": "user", "content": "please " * (number % 5) + f"help with my {things[number % 4]} {number}"},
                {"role": "assistant", "content": f"about {things[number % 4]}"},
            ]
        }
        for number in range(count)
    ]


def publish_dataset(store: Path, content: list[dict[str, Any]]) -> ArtifactRef:
    """An artifact as validate leaves it."""
    staged = store.parent / "staged"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for name in ("train.jsonl", "eval.jsonl"):
        (staged / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    files = file_entries(staged)
    train, held_out = (
        FileRef(uri=f"file://{staged}/{f.path}", digest=f.sha256, size_bytes=f.size_bytes) for f in files
    )
    spec = ValidateSpec(train=train, eval=held_out, rules=Validation())
    result = ValidateResult(train_rows=len(content), eval_rows=len(content), labels=(), rules=1).model_dump(mode="json")
    key = step_key("validate", 1, spec)
    manifest = Manifest(
        step="validate",
        key=key,
        digest=manifest_digest("validate", key, files, result),
        root=content_root(files),
        files=files,
        spec=spec.model_dump(mode="json"),
        result=result,
        code_version="0",
        environment_digest="0" * 64,
        started_at="2026-01-01T00:00:00+00:00",
        duration_s=0.0,
    )
    return artifacts.publish(f"file://{store}/validate/{key}", staged, manifest).ref(f"file://{store}/validate/{key}")


def make_spec(dataset: ArtifactRef, base_model: dict[str, Any] | None = None, **settings: Any) -> FinetuneSpec:
    """A training of 12 steps on two nodes unless `settings` say otherwise."""
    small = {"nodes": 2, "epochs": 1, "batch_size": 8, "max_seq_len": 64, "prompt_loss_weight": 0.1}
    return FinetuneSpec(
        dataset=dataset,
        base_model=BaseModelSource.model_validate(base_model or INIT),
        settings=Finetune.model_validate({**small, **settings}),
    )


@dataclass
class TrainingJob:
    """One run of the step on all its nodes, with a state folder of its own."""

    spec: FinetuneSpec
    home: Path
    nodes: int
    environment: dict[str, str] = field(default_factory=dict)
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def key(self) -> str:
        return step_key("finetune", 1, self.spec)

    @property
    def out_uri(self) -> str:
        return f"file://{self.home}/store/finetune/{self.key}"

    @property
    def scratch(self) -> Path:
        return self.home / "work" / "finetune" / self.key

    @property
    def log(self) -> str:
        paths = [*sorted(self.home.glob("node-*.log")), *self.home.glob("jobs/*/log")]
        return "".join(path.read_text() for path in paths)

    def backend(self) -> ProcessBackend:
        """One that keeps its jobs in this one's state folder."""
        return ProcessBackend(settings.load({**os.environ, "SLIPWAY_HOME": str(self.home)}))

    def request(self) -> JobRequest:
        """What a backend is to run."""
        return JobRequest(
            job_id=f"finetune-{self.key[:12]}",
            environment="model",
            arguments=("-m", "pipeline", "finetune", "--spec", "{spec}", "--out", self.out_uri),
            spec=self.spec.model_dump_json(),
            deadline_s=DEADLINE_S,
            nodes=self.nodes,
            variables={"SLIPWAY_HOME": str(self.home)},
            claim=Claim(holder="test", token="first"),
        )

    def start(self) -> None:
        """Starts a process a node, on a rendezvous port of its own."""
        self.home.mkdir(parents=True, exist_ok=True)
        spec_path = self.home / "spec.json"
        spec_path.write_text(self.spec.model_dump_json())
        port = _free_port()
        self.processes = []
        for rank in range(self.nodes):
            environment = {
                **os.environ,
                "SLIPWAY_HOME": str(self.home),
                "SLIPWAY_NODES": str(self.nodes),
                "SLIPWAY_NODE_RANK": str(rank),
                **({"SLIPWAY_RENDEZVOUS": f"127.0.0.1:{port}"} if self.nodes > 1 else {}),
                **self.environment,
            }
            command = [sys.executable, "-m", "pipeline", "finetune", "--spec", str(spec_path), "--out", self.out_uri]
            with (self.home / f"node-{rank}.log").open("ab") as log:
                self.processes.append(
                    subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
                )

    def wait(self) -> list[int]:
        return [process.wait(timeout=DEADLINE_S) for process in self.processes]

    def run(self) -> Manifest:
        """Starts, waits, and gives the manifest."""
        self.start()
        codes = self.wait()
        assert codes == [0] * self.nodes, self.log
        return artifacts.read_manifest(self.out_uri)

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            process.wait(timeout=60)

    def folder(self) -> Path:
        """The published files."""
        return Path(self.out_uri.removeprefix("file://")) / artifacts.read_manifest(self.out_uri).root

    def losses(self) -> list[float]:
        lines = (self.folder() / "training" / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    def workers(self) -> list[int]:
        """Process ids of the living ranks."""
        return processes_with(f"--plan={self.scratch}", "pipeline.training.worker", without="torch.distributed.run")

    def has_checkpoint(self) -> bool:
        return any(self.home.glob("store/checkpoints/*/step-*/complete"))


def processes_with(*texts: str, without: str) -> list[int]:
    """Process ids whose command line holds all of `texts`."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if all(text in command for text in texts) and without not in command:
                    found.append(int(folder.name))
    return sorted(found)


def wait_until(condition: Callable[[], bool], what: str, job: TrainingJob) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} never came about:\n{job.log}"
        time.sleep(0.02)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def running(job: TrainingJob) -> Iterator[TrainingJob]:
    """`job` started, and stopped at the end whatever happens."""
    job.start()
    try:
        yield job
    finally:
        job.stop()
