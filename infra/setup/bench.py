"""Runs every benchmark in tests/bench in its environment and passes its JSON lines on.

A benchmark that needs the model or serve environment says so in a line of its own: `ENVIRONMENT = "model"`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
VENVS = Path(os.environ.get("SLIPWAY_VENVS") or ROOT / ".venvs").absolute()


def main() -> int:
    wanted = sys.argv[1:]
    paths = [
        path
        for path in sorted((ROOT / "tests" / "bench").glob("[!_]*.py"))
        if path.stem != "conftest" and (not wanted or path.stem in wanted)
    ]
    if not paths:
        print(f"no benchmark {' '.join(wanted)} in tests/bench", file=sys.stderr)
        return 1
    return max([run(path) for path in paths])


def run(path: Path) -> int:
    named = re.search(r'^ENVIRONMENT = "(\w+)"$', path.read_text(), re.MULTILINE)
    python = VENVS / (named[1] if named else "control") / "bin" / "python"
    print(f"{path.stem} …", file=sys.stderr, flush=True)
    variables = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"}
    return subprocess.run([str(python), str(path)], cwd=ROOT, env=variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
