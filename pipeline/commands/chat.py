"""`slipway chat`: asks a served model through the gateway, and shows the answer as it comes, which version gave it, and
the request's id, by which `slipway trace` finds it again.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from pipeline.commands.output import console, here
from pipeline.commands.status import rolled_out_last
from pipeline.contracts.base import Contract
from pipeline.errors import SpecError, TransientError
from pipeline.fleet.envoy_routes import CANARY_HEADER
from pipeline.fleet.views import read_fleet
from pipeline.stack.layout import Layout

TIMEOUT_S = 120.0
HOW_TO_CHOOSE = (
    "`slipway keys create NAME --may-choose > FILE` makes a key that may, and `slipway chat --canary --key-file FILE`"
    " uses it"
)


class Wish(Contract):
    """How to ask."""

    key: str
    """Of the gateway."""
    max_tokens: int
    canary: bool = False
    """Of the canary alone; the key must be allowed to choose."""


def chat(name: str | None, message: str | None, *, max_tokens: int, canary: bool, key_path: Path | None) -> None:
    """One question, or, without `message`, one after the other until the end of the input.

    Args:
        key_path: a file that holds the key; None: the stack's own.

    Raises:
        SpecError: no such model is served; or it has no canary, or the key may not choose it.
        TransientError: the gateway does not answer.
    """
    layout, _ = here()
    model = served_model(layout, name)
    if canary and read_fleet(layout.home_path)[model].canary is None:
        raise SpecError(f"{model} has no canary now: `slipway rollout status {model}` says how far its rollout is")
    if canary and key_path is None:
        raise SpecError(f"the stack's own key may not choose who answers: {HOW_TO_CHOOSE}")
    key = layout.access().api_key if key_path is None else _read_key(key_path)
    wish = Wish(key=key, max_tokens=max_tokens, canary=canary)
    if message is not None:
        answer(layout, model, message, wish)
        return
    console.print(f"Talking to {model}. An empty line ends it.")
    while question := _ask():
        answer(layout, model, question, wish)


def served_model(layout: Layout, name: str | None) -> str:
    """The model that was asked for, if it is served."""
    fleet = read_fleet(layout.home_path)
    served = sorted(model.name for model in fleet.values() if model.serving)
    wanted = name or rolled_out_last(fleet)
    if not served:
        raise SpecError("no model is served yet: `./slipway release demo` releases one, `./slipway status` shows it")
    if wanted not in served:
        raise SpecError(f"no model {wanted} is served; served are: {', '.join(served)}")
    return str(wanted)


def _read_key(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise SpecError(f"cannot read the key in {path}: {error.strerror}") from error


def answer(layout: Layout, model: str, message: str, wish: Wish) -> None:
    """Prints the model's answer as it streams in, and which version gave it.

    Raises:
        SpecError: the gateway refused the request, or the canary was asked for and another version answered.
    """
    url = f"{layout.ports().url('gateway')}/v1/chat/completions"
    headers = {"Authorization": f"Bearer {wish.key}", **({CANARY_HEADER: "always"} if wish.canary else {})}
    body = {
        "model": model,
        "messages": [{"role": "user", "content": message}],
        "max_tokens": wish.max_tokens,
        "temperature": 0,
        "stream": True,
    }
    try:
        with httpx.stream("POST", url, json=body, headers=headers, timeout=TIMEOUT_S, trust_env=False) as response:
            if response.status_code != 200:
                raise SpecError(f"the gateway answered {response.status_code}: {response.read().decode()[:500]}")
            if wish.canary:
                _refuse_other_than_canary(layout, model, response.headers)
            for piece in pieces(response.iter_lines()):
                console.print(piece, end="", markup=False)
            console.print(f"\n[dim]{model} {origin(response.headers)}[/dim]")
    except httpx.TransportError as error:
        raise TransientError(f"the gateway at {url} does not answer ({error}): run `./slipway up`") from error


def origin(headers: Mapping[str, str]) -> str:
    """Who answered what, from an answer's headers."""
    version = headers.get("x-slipway-version", "not known")
    generation = headers.get("x-slipway-generation", "not known")
    return f"version {version} (generation {generation}), request {headers.get('x-request-id', 'without id')}"


def _refuse_other_than_canary(layout: Layout, model: str, headers: Mapping[str, str]) -> None:
    """A key that may not choose is not told so by the gateway: its header means nothing."""
    canary = read_fleet(layout.home_path)[model].canary
    if canary and headers.get("x-slipway-generation") != str(canary.deployment):
        raise SpecError(
            f"not the canary, version {canary.version}, would have answered, but {origin(headers)}: this key may not"
            f" choose, or the canary cannot answer; {HOW_TO_CHOOSE}"
        )


def pieces(lines: Iterator[str]) -> Iterator[str]:
    """The text in a stream of server-sent events."""
    for line in lines:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        event: dict[str, Any] = json.loads(data)
        for choice in event.get("choices", []):
            yield choice["delta"].get("content") or ""


def _ask() -> str:
    try:
        return console.input("> ").strip()
    except EOFError:
        return ""
