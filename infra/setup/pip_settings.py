"""What pip is configured with on this machine, as options of uv, so that one configuration serves both.

uv reads none of pip's files and none of its PIP_… variables. What the user set for uv itself (UV_…) wins.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

MIN_TIMEOUT_S = 120

PLACES = (
    ("index-url", "--default-index", ("UV_DEFAULT_INDEX", "UV_INDEX_URL")),
    ("extra-index-url", "--index", ("UV_INDEX", "UV_EXTRA_INDEX_URL")),
    ("find-links", "--find-links", ("UV_FIND_LINKS",)),
    ("trusted-host", "--allow-insecure-host", ("UV_INSECURE_HOST",)),
)
"""What pip calls where packages come from, uv's option for it, and uv's variables."""


@dataclass(frozen=True)
class UvOptions:
    """Options for uv's commands, and variables for its environment."""

    arguments: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)


def read() -> dict[str, str]:
    """pip's effective settings: its files, then its variables, by option name."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return parse(done.stdout) if done.returncode == 0 else from_variables(os.environ)


def parse(listing: str) -> dict[str, str]:
    """The output of `pip config list`: `[install]` wins over `[global]`, and variables win over both."""
    ranks: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listing.splitlines():
        key, equals, value = line.partition("=")
        section, _, name = key.partition(".")
        if equals and section in ranks:
            ranks[section][name] = str(ast.literal_eval(value))
    return ranks["global"] | ranks["install"] | ranks[":env:"]


def from_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """For a Python without pip: the variables alone."""
    return {
        name.removeprefix("PIP_").lower().replace("_", "-"): value
        for name, value in environ.items()
        if name.startswith("PIP_")
    }


def uv_options(settings: Mapping[str, str], environ: Mapping[str, str]) -> UvOptions:
    """`settings` of pip in uv's terms, leaving out what `environ` sets for uv itself."""
    arguments: list[str] = []
    for name, option, variables in PLACES:
        if not any(environ.get(variable) for variable in variables):
            arguments += [part for value in settings.get(name, "").split() for part in (option, value)]
    if is_on(settings, "no-index"):
        arguments.append("--no-index")
    # pip looks at all indexes and takes the best version; uv by default only at the first that knows the name.
    arguments += ["--index-strategy", "unsafe-best-match"]
    return UvOptions(tuple(arguments), _variables(settings, environ))


def is_on(settings: Mapping[str, str], name: str) -> bool:
    return settings.get(name, "").lower() in ("1", "true", "yes", "on")


def with_uv(settings: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """`settings` of pip, with what `environ` sets for uv in the place of pip's: for a build that sees neither."""
    merged = dict(settings)
    for name, _, variables in PLACES:
        found = next((environ[variable] for variable in variables if environ.get(variable)), "")
        if found:
            merged[name] = " ".join(re.sub(r"^[\w-]+=", "", value) for value in re.split(r"[\s,]+", found) if value)
    return merged


def _variables(settings: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    timeout_s = settings.get("timeout") or settings.get("default-timeout") or "0"
    wanted = {
        "UV_HTTP_TIMEOUT": str(max(MIN_TIMEOUT_S, int(float(timeout_s)))),
        "SSL_CERT_FILE": settings.get("cert", ""),
        "SSL_CLIENT_CERT": settings.get("client-cert", ""),
        "ALL_PROXY": settings.get("proxy", ""),
    }
    return {name: value for name, value in wanted.items() if value and not environ.get(name)}
