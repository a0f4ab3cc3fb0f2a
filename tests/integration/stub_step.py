"""Stands in for `python -m pipeline rollout` where a test must force how a phase ends.

    python stub_step.py -m pipeline rollout --spec SPEC --out URI

It reads SLIPWAY_HOME/stub/{model}-{phase}.json: {"outcome", "exit_code", "hold"}; while the file that `hold` names
exists, it waits. It notes each run in SLIPWAY_HOME/stub/runs, and publishes a real artifact.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from pipeline import artifacts, settings
from pipeline.artifacts.digests import file_entries
from pipeline.artifacts.transfer import content_root
from pipeline.contracts.manifest import Manifest, manifest_digest
from pipeline.contracts.specs import RolloutResult, RolloutSpec

DEFAULT_OUTCOMES = {"shift": "healthy"}


def main(spec: RolloutSpec, out_uri: str) -> int:
    folder = settings.load().home_path / "stub"
    told_path = folder / f"{spec.name}-{spec.phase}.json"
    told = json.loads(told_path.read_text()) if told_path.exists() else {}
    with (folder / "runs").open("a") as runs:
        runs.write(f"{spec.name} {spec.phase}\n")
    for line in range(3):
        print(f"progress {line}/3 line of {spec.phase}", flush=True)
    while told.get("hold") and Path(told["hold"]).exists():
        time.sleep(0.05)
    print(f"done with {spec.phase}", flush=True)
    if code := told.get("exit_code"):
        print(f"error {code} StubError: {spec.phase} was told to fail", flush=True)
        return int(code)
    result = RolloutResult(
        name=spec.name,
        generation=1,
        phase=spec.phase,
        outcome=told.get("outcome", DEFAULT_OUTCOMES.get(spec.phase, "done")),
        reason=spec.reason or f"{spec.phase} as told",
        version="2",
        previous="1",
    )
    publish(spec, result, out_uri)
    return 0


def publish(spec: RolloutSpec, result: RolloutResult, out_uri: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "result.json").write_text(result.model_dump_json())
        files = file_entries(Path(folder))
        key, dumped = out_uri.rpartition("/")[2], result.model_dump(mode="json")
        manifest = Manifest(
            step="rollout",
            key=key,
            digest=manifest_digest("rollout", key, files, dumped),
            root=content_root(files),
            files=files,
            spec=spec.model_dump(mode="json"),
            result=dumped,
            code_version="test",
            environment_digest="0" * 64,
            started_at="2026-01-01T00:00:00+00:00",
            duration_s=0.0,
        )
        artifacts.publish(out_uri, Path(folder), manifest)


if __name__ == "__main__":
    arguments = dict(zip(sys.argv[4::2], sys.argv[5::2], strict=True))
    sys.exit(main(RolloutSpec.model_validate_json(Path(arguments["--spec"]).read_bytes()), arguments["--out"]))
