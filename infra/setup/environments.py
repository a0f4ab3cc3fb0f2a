"""Makes the three Python environments below .venvs from the pinned lists in infra/requirements.

    python3.11 infra/setup/environments.py            # what running needs
    python3.11 infra/setup/environments.py --tests    # and what testing needs

Standard library only. Uses uv, which it installs with pip into .venvs/uv if there is none. Repeating it is free: a
stamp in each environment holds the digest of the lists that it was made from.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pip_settings

ROOT = Path(__file__).resolve().parent.parent.parent
REQUIREMENTS = ROOT / "infra" / "requirements"
VENVS = Path(os.environ.get("SLIPWAY_VENVS") or ROOT / ".venvs").absolute()
PYTHON_VERSION = (3, 11)
NEEDED_BYTES = 8 << 30
UV_VERSION = "0.13.8"
TORCH = "torch==2.13.0"
STAMP = "slipway-setup.json"


class SetupError(Exception):
    """Something that the user has to see to; the message says what."""


@dataclass(frozen=True)
class Environment:
    """One environment: its pinned list, what its tests need, and a local package that the CPU's list alone needs."""

    name: str
    tests: str
    local_package: str | None = None
    variant: str = "cpu"
    place: Path | None = None
    """Where it is made, if not among the others: in an image there is only one."""

    @property
    def path(self) -> Path:
        return self.place or VENVS / self.name

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    @property
    def lock(self) -> Path:
        """The variant's own list where there is one: most packages know nothing of GPUs."""
        own = REQUIREMENTS / f"{self.name}-{self.variant}.txt"
        return own if own.exists() else REQUIREMENTS / f"{self.name}.txt"

    @property
    def local_folder(self) -> Path | None:
        return REQUIREMENTS / self.local_package if self.local_package and self.variant == "cpu" else None

    def wanted(self, *, tests: bool) -> dict[str, str]:
        """What the stamp says when there is nothing left to do."""
        paths = [self.lock, *([self.local_folder / "pyproject.toml"] if self.local_folder else [])]
        stamp = {"lock": _digest(*paths)}
        return stamp | {"tests": _digest(REQUIREMENTS / self.tests)} if tests else stamp

    def stamp(self) -> dict[str, str]:
        path = self.path / STAMP
        if not (path.exists() and self.python.exists()):
            return {}
        found: dict[str, str] = json.loads(path.read_text())
        return found

    def is_current(self, *, tests: bool) -> bool:
        return self.wanted(tests=tests).items() <= self.stamp().items()


ENVIRONMENTS = (
    Environment("control", "dev.txt"),
    Environment("model", "test.txt"),
    Environment("serve", "test.txt", local_package="vllm-alias"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", action="store_true", help="install what testing needs, too")
    names = [environment.name for environment in ENVIRONMENTS]
    parser.add_argument("--only", choices=names, help="make one environment (an image's build does)")
    parser.add_argument("--variant", choices=("cpu", "cuda"), default="cpu", help="of --only: the processor it is for")
    parser.add_argument("--place", type=Path, help="of --only: where to make it")
    options = parser.parse_args()
    chosen = ENVIRONMENTS
    if options.only:
        named = ENVIRONMENTS[names.index(options.only)]
        chosen = (replace(named, variant=options.variant, place=options.place),)
    try:
        set_up(chosen, tests=options.tests)
    except SetupError as error:
        print(f"set-up stopped: {error}", file=sys.stderr)
        return 1
    return 0


def set_up(environments: tuple[Environment, ...], *, tests: bool) -> None:
    VENVS.mkdir(parents=True, exist_ok=True)
    with (VENVS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [found for found in environments if not found.is_current(tests=tests)]
        if not missing:
            return
        check_machine()
        uv = Uv.find()
        with ThreadPoolExecutor(len(missing)) as pool:
            futures = [pool.submit(make, environment, uv, tests=tests) for environment in missing]
            failures = [str(error) for error in (future.exception() for future in futures) if error]
    if failures:
        raise SetupError("\n".join(failures))


def check_machine() -> None:
    if sys.version_info[:2] != PYTHON_VERSION:
        wanted = ".".join(map(str, PYTHON_VERSION))
        raise SetupError(
            f"this is Python {sys.version.split()[0]}, but Python {wanted} is needed: install it and run"
            f" `make setup PYTHON=/path/to/python{wanted}`"
        )
    if os.uname().sysname != "Linux" or os.uname().machine != "x86_64":
        raise SetupError(f"this is {os.uname().sysname} {os.uname().machine}, expected Linux x86_64")
    free = shutil.disk_usage(VENVS).free
    if free < NEEDED_BYTES and not any(environment.stamp() for environment in ENVIRONMENTS):
        raise SetupError(
            f"{VENVS} has {free / 2**30:.1f} GiB free, {NEEDED_BYTES / 2**30:.0f} are needed: free some,"
            " or set SLIPWAY_VENVS to a folder on another disk"
        )


@dataclass(frozen=True)
class Uv:
    """uv with what pip is configured with."""

    path: Path
    options: pip_settings.UvOptions

    @classmethod
    def find(cls) -> "Uv":
        options = pip_settings.uv_options(pip_settings.read(), os.environ)
        for path in (shutil.which("uv"), VENVS / "uv" / "bin" / "uv"):
            if path and _works(Path(path)):
                return cls(Path(path), options)
        return cls(_install_uv(), options)

    def run(self, *arguments: str) -> None:
        """Runs a uv command.

        Raises:
            SetupError: it failed; the message is the end of what uv said.
        """
        done = self._run(arguments)
        if done.returncode:
            raise SetupError(
                f"`uv {' '.join(arguments[:2])} …` failed:\n{_tail(done.stderr)}\n"
                "If the package index cannot be reached, look at `pip config list`: set-up uses what pip uses."
            )

    def offers_cpu_torch(self) -> bool:
        """Whether the configured indexes and folders hold a CPU build of torch."""
        python = f"--python-version={'.'.join(map(str, PYTHON_VERSION))}"
        command = ("pip", "compile", python, "--no-deps", "--no-header", *self.options.arguments, "-")
        done = self._run(command, given=TORCH)
        return any(line.startswith(TORCH) and "+cpu" in line for line in done.stdout.splitlines())

    def _run(self, arguments: tuple[str, ...], given: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(self.path), *arguments],
            env={**os.environ, **self.options.variables, "UV_NO_PROGRESS": "1", "VIRTUAL_ENV": ""},
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )


def make(environment: Environment, uv: Uv, *, tests: bool) -> None:
    """Brings one environment to its lists."""
    started = time.monotonic()
    wanted = environment.wanted(tests=tests)
    options = list(uv.options.arguments)
    if environment.stamp().get("lock") != wanted["lock"]:
        print(f"{environment.name}: installing what {environment.lock.relative_to(ROOT)} lists …", flush=True)
        (environment.path / STAMP).unlink(missing_ok=True)
        if not environment.python.exists():
            uv.run("venv", "--quiet", "--clear", "--no-project", "--python", sys.executable, str(environment.path))
        lists_torch = any(line.startswith("torch==") for line in environment.lock.read_text().splitlines())
        for_cpu = lists_torch and environment.variant == "cpu"
        backend = ["--torch-backend", "cpu"] if for_cpu and not uv.offers_cpu_torch() else []
        uv.run("pip", "sync", "--python", str(environment.python), *options, *backend, str(environment.lock))
        if lists_torch:
            check_torch(environment)
        if environment.local_folder:
            flags = ["--no-build-isolation", "--no-deps"]
            uv.run("pip", "install", "--python", str(environment.python), *flags, str(environment.local_folder))
    if tests:
        listing = str(REQUIREMENTS / environment.tests)
        uv.run("pip", "install", "--python", str(environment.python), *options, "--no-deps", "-r", listing)
    (environment.path / STAMP).write_text(json.dumps(wanted, indent=2) + "\n")
    print(f"{environment.name}: ready ({time.monotonic() - started:.0f} s)", flush=True)


def check_torch(environment: Environment) -> None:
    """Refuses a torch of the other variant: a CUDA build's libraries are not in the CPU's lists, so it could not be
    imported; a CPU build would leave the GPU idle."""
    version = next(environment.path.glob("lib/python*/site-packages/torch/version.py")).read_text()
    if ("+cpu" in version) == (environment.variant == "cpu"):
        return
    if environment.variant == "cpu":
        raise SetupError(
            f"{environment.name}: the package index gave a torch that is no CPU build. Tell pip where to find one,"
            f" e.g. `pip config set global.extra-index-url ADDRESS` with the address of PyTorch's index of CPU wheels"
            f" (or global.find-links with a folder that holds one); remove {environment.path}; run `make setup` again"
        )
    raise SetupError(
        f"{environment.name}: the package index gave a CPU build of torch, expected one for CUDA. Take the index of CPU"
        f" wheels out of pip's configuration (`pip config list`) for this build, and build again"
    )


def _install_uv() -> Path:
    print(f"uv: installing {UV_VERSION} with pip …", flush=True)
    target = VENVS / "uv"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(target)]
    done = subprocess.run([*command, f"uv=={UV_VERSION}"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(
            f"there is no uv on PATH, and pip could not install it:\n{_tail(done.stderr)}\n"
            "Install uv, or pip for this Python (on Debian: apt install python3-pip), and run `make setup` again"
        )
    return target / "bin" / "uv"


def _works(path: Path) -> bool:
    if not path.exists():
        return False
    return subprocess.run([str(path), "--version"], capture_output=True, check=False).returncode == 0


def _digest(*paths: Path) -> str:
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def _tail(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines()[-15:])


if __name__ == "__main__":
    sys.exit(main())
