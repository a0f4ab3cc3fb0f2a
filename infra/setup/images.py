"""Builds the three container images and says what came out: `make images`, `make images VARIANT=cuda`.

    PYTHONPATH=. python3.11 infra/setup/images.py [--variant cuda] [--base-image NAME] [control model serve]

Reads infra/images/NAME.Dockerfile, the pinned lists and pip's configuration, and writes linked wheels and logs below
build/images. Needs Docker with buildx, and of Python its standard library alone. Repeating it costs seconds: the layer
of packages depends on its list and on nothing else.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import build_places
import environments
import pip_settings

from pipeline import __version__, images
from pipeline.code_version import code_version

ROOT = environments.ROOT
FOLDER = ROOT / "build" / "images"
BASE_IMAGE = "python:3.11-slim-bookworm"
HEARTBEAT_S = 30


class BuildError(Exception):
    """Something that the user has to see to; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be built."""

    names: tuple[str, ...] = images.ENVIRONMENTS
    variant: str = "cpu"
    base_image: str = BASE_IMAGE


@dataclass(frozen=True, kw_only=True)
class Built:
    """One image."""

    name: str
    image_id: str
    size_bytes: int
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(images.ENVIRONMENTS)}; default: all")
    parser.add_argument("--variant", choices=images.VARIANTS, default="cpu", help="the processor to build for")
    parser.add_argument("--base-image", default=BASE_IMAGE, help=f"with Python 3.11; default: {BASE_IMAGE}")
    options = parser.parse_args()
    if unknown := set(options.names) - set(images.ENVIRONMENTS):
        parser.error(f"there is no image {', '.join(sorted(unknown))}, expected {', '.join(images.ENVIRONMENTS)}")
    names = tuple(options.names) or images.ENVIRONMENTS
    try:
        built = build(Order(names=names, variant=options.variant, base_image=options.base_image))
    except BuildError as error:
        print(f"build stopped: {error}", file=sys.stderr)
        return 1
    print(table(built))
    return 0


def build(order: Order) -> list[Built]:
    """Builds what `order` names, one after the other: they share the machine and what was downloaded.

    Raises:
        BuildError: a part is missing, or a build failed.
    """
    check_docker()
    check_base_image(order.base_image)
    FOLDER.mkdir(parents=True, exist_ok=True)
    settings = pip_settings.with_uv(pip_settings.read(), os.environ)
    with secrets(settings) as secret_options:
        return [_build(name, order, (*_wheels(name, order, settings), *secret_options)) for name in order.names]


def check_docker() -> None:
    """Raises BuildError where Docker, its engine or buildx is missing."""
    if shutil.which("docker") is None:
        raise BuildError("there is no docker on PATH: install Docker with buildx (processes, the default, need none)")
    engine = _docker("version", "--format", "{{.Server.Version}}")
    if engine.returncode:
        raise BuildError(f"Docker's engine does not answer: start it, or join the group docker\n{_tail(engine.stderr)}")
    if _docker("buildx", "version").returncode:
        raise BuildError("docker has no buildx, which the builds need: install docker-buildx (docker-buildx-plugin)")


def check_base_image(name: str) -> None:
    """Pulls the base image if it is not here.

    Raises:
        BuildError: it could not be pulled.
    """
    if _docker("image", "inspect", name).returncode == 0:
        return
    print(f"{name}: pulling …", flush=True)
    pulled = _docker("pull", "--quiet", name)
    if pulled.returncode:
        raise BuildError(
            f"the base image {name} is not here and could not be pulled: load it (`docker load`), or name one that has"
            f" Python 3.11: `make images BASE_IMAGE=…`\n{_tail(pulled.stderr)}"
        )


@contextmanager
def secrets(settings: dict[str, str]) -> Iterator[tuple[str, ...]]:
    """Options that hand pip's addresses and certificates to a build; the files are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="slipway-images-") as folder:
        conf = Path(folder) / "pip.conf"
        conf.touch(mode=0o600)
        conf.write_text(build_places.pip_conf(settings), encoding="utf-8")
        files = {"pip_conf": conf, **build_places.secret_files(settings)}
        yield tuple(f"--secret=id={name},src={path}" for name, path in files.items())


def _wheels(name: str, order: Order, settings: dict[str, str]) -> tuple[str, ...]:
    """The option that hands local wheels to the build of `name`."""
    environment = next(found for found in environments.ENVIRONMENTS if found.name == name)
    lock = replace(environment, variant=order.variant).lock
    folder = FOLDER / "wheels" / f"{name}-{order.variant}"
    build_places.link_wheels(settings, lock, folder, variant=order.variant)
    return (f"--build-context=wheels={folder}",)


def _build(name: str, order: Order, options: tuple[str, ...]) -> Built:
    image = images.tagged(name, images.default_tag(order.variant))
    arguments = {"BASE_IMAGE": order.base_image, "VARIANT": order.variant, **labels()}
    command = (
        *("docker", "buildx", "build", "--load", "--provenance=false", f"--tag={image}"),
        f"--file={ROOT / 'infra' / 'images' / f'{name}.Dockerfile'}",
        *(f"--build-arg={argument}={value}" for argument, value in arguments.items()),
        *options,
    )
    started = time.monotonic()
    run(image, [*command, str(ROOT)], FOLDER / f"{name}-{order.variant}.log")
    image_id, size = _docker("image", "inspect", "--format", "{{.Id}} {{.Size}}", image).stdout.split()
    return Built(name=image, image_id=image_id, size_bytes=int(size), seconds=time.monotonic() - started)


def labels() -> dict[str, str]:
    """Where the code comes from, as arguments of a build."""
    code = code_version()
    commit = code.partition("+g")[2]
    return {"CODE_VERSION": code, "VERSION": __version__, "REVISION": commit or "unknown", "SOURCE": source()}


def source() -> str:
    """The address of the checkout's origin, without a name or a password that may be in it."""
    command = ["git", "-C", str(ROOT), "config", "--get", "remote.origin.url"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout if shutil.which("git") else ""
    return re.sub(r"(?<=://)[^/@]*@", "", found.strip()) or "unknown"


def run(image: str, command: list[str], log: Path) -> None:
    """Runs one build: on a terminal with Docker's own progress, elsewhere with a line now and then, and a log.

    Raises:
        BuildError: it failed; the message is the end of the log.
    """
    print(f"{image}: building …", flush=True)
    if sys.stdout.isatty():
        if subprocess.run(command, check=False).returncode:
            raise BuildError(f"{image} could not be built, see above")
        return
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--progress=plain"], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        code = _wait(process, image)
    if code:
        raise BuildError(
            f"{image} could not be built; the whole log is {log}\n{_tail(log.read_text(errors='replace'))}"
        )


def _wait(process: "subprocess.Popen[bytes]", image: str) -> int:
    started = time.monotonic()
    try:
        while True:
            try:
                return process.wait(timeout=HEARTBEAT_S)
            except subprocess.TimeoutExpired:
                print(f"{image}: still building ({time.monotonic() - started:.0f} s)", flush=True)
    finally:
        process.terminate()


def table(built: list[Built]) -> str:
    """What came out, a line an image."""
    rows = [("image", "id", "size", "time")]
    for one in built:
        short = one.image_id.removeprefix("sha256:")[:12]
        rows.append((one.name, short, f"{one.size_bytes / 1e6:,.0f} MB", f"{one.seconds:.0f} s"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = (f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows)
    return "\n".join(lines)


def _docker(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = ["docker", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def _tail(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines()[-15:])


if __name__ == "__main__":
    sys.exit(main())
