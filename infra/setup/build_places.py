"""Where an image's build takes packages from: what pip is configured with on this machine, as far as a build sees it.

A build sees no folder of the machine and none of its files. So the wheels of local folders and of local indexes
(file://…) that a pinned list names are linked into one folder, which becomes a build context, and all addresses go
into a pip.conf, which becomes a build secret. Neither stays in a layer.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

WHEELS = "/wheels"
"""Where a build finds the linked wheels."""
SECRETS = "/run/secrets"
FILES = {"cert": "pip_cert", "client-cert": "pip_client_cert"}
"""pip's settings that name a file, and what the file's secret is called."""
KEPT = ("index-url", "extra-index-url", "trusted-host", "no-index", "proxy", "timeout", "default-timeout")
ARCHIVES = (".tar.gz", ".zip")


def pip_conf(settings: Mapping[str, str]) -> str:
    """pip's configuration file for the build: the same indexes, with the local ones replaced by the linked wheels."""
    indexes = [value for name in ("index-url", "extra-index-url") for value in settings.get(name, "").split()]
    remote = [index for index in indexes if not _local(index)]
    build = {name: settings[name] for name in KEPT if settings.get(name)}
    build["extra-index-url"] = " ".join(index for index in remote if index != settings.get("index-url"))
    build["find-links"] = " ".join([WHEELS, *(link for link in _find_links(settings) if not _local(link))])
    if _local(settings.get("index-url", "")):
        build |= _without_default(remote)
    build |= {name: f"{SECRETS}/{secret}" for name, secret in FILES.items() if settings.get(name)}
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in build.items() if value)


def _without_default(remote: list[str]) -> dict[str, str]:
    """For a machine whose index is local: the public one must not take its place."""
    if not remote:
        return {"index-url": "", "no-index": "true"}
    return {"index-url": remote[0], "extra-index-url": " ".join(remote[1:])}


def link_wheels(settings: Mapping[str, str], lock: Path, folder: Path, *, variant: str) -> int:
    """Makes `folder` hold the local files that `lock` names, and nothing else.

    A build for CUDA must not find a local CPU build: `torch==2.13.0` would mean `2.13.0+cpu`.

    Returns:
        How many they are.
    """
    found = local_files(settings, read_lock(lock))
    wanted = {path.name: path for path in found if variant == "cpu" or "+cpu" not in path.name}
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in wanted or not _same(path, wanted[path.name]):
            path.unlink()
    for name, path in wanted.items():
        if not (folder / name).exists():
            _link(path, folder / name)
    return len(wanted)


def local_files(settings: Mapping[str, str], lock: Mapping[str, str]) -> Iterator[Path]:
    """The files in local places whose name and version `lock` has. Of the same name, the last one counts."""
    for index in (settings.get("index-url", "") + " " + settings.get("extra-index-url", "")).split():
        if root := _local(index):
            for name in lock:
                yield from (path for path in _listed(root / name / "index.html") if _is_wanted(path, lock))
    for link in _find_links(settings):
        if root := _local(link):
            yield from (path for path in sorted(root.glob("*")) if _is_wanted(path, lock))


def read_lock(path: Path) -> dict[str, str]:
    """Package to version, names as indexes write them."""
    pins = [line.partition("==") for line in path.read_text().splitlines() if "==" in line and line[0] != "#"]
    return {_canonical(name): version.strip() for name, _, version in pins}


def secret_files(settings: Mapping[str, str]) -> dict[str, Path]:
    """Secret to the file of this machine that holds it."""
    return {secret: Path(settings[name]) for name, secret in FILES.items() if settings.get(name)}


def _find_links(settings: Mapping[str, str]) -> list[str]:
    return settings.get("find-links", "").split()


def _local(place: str) -> Path | None:
    """The folder behind a path or a file:// address; None for an address of somewhere else."""
    if place.startswith("file:"):
        return Path(unquote(urlsplit(place).path))
    return Path(place).expanduser() if place and "://" not in place else None


def _listed(page: Path) -> Iterator[Path]:
    """The files that a local index's page links to."""
    if not page.is_file():
        return
    for link in re.findall(r'href="([^"#]+)', page.read_text(encoding="utf-8")):
        path = _local(urljoin(page.as_uri(), link))
        if path and path.is_file():
            yield path


def _is_wanted(path: Path, lock: Mapping[str, str]) -> bool:
    name, version = _parsed(path.name)
    return lock.get(name, "") == version.partition("+")[0] != ""


def _parsed(file_name: str) -> tuple[str, str]:
    """Name and version of a wheel or a source archive; blank for anything else."""
    if file_name.endswith(".whl") and file_name.count("-") >= 4:
        name, version, *_ = file_name.split("-")
        return _canonical(name), version
    for ending in ARCHIVES:
        if file_name.endswith(ending):
            name, _, version = file_name.removesuffix(ending).rpartition("-")
            return _canonical(name), version
    return "", ""


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).strip().lower()


def _same(path: Path, other: Path) -> bool:
    mine, theirs = path.stat(), other.stat()
    return (mine.st_size, mine.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)


def _link(source: Path, target: Path) -> None:
    """Hard, since a build context follows no links; a copy where the disks differ."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)
