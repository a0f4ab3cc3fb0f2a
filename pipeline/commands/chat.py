"""`slipway chat`: asks a served model through the gateway, and shows the answer as it comes."""

import json
from collections.abc import Iterator
from typing import Any

import httpx

from pipeline.commands.output import console, here
from pipeline.commands.status import rolled_out_last
from pipeline.errors import SpecError, TransientError
from pipeline.fleet.state import read_fleet
from pipeline.stack.layout import Layout

TIMEOUT_S = 120.0


def chat(name: str | None, message: str | None, *, max_tokens: int) -> None:
    """One question, or, without `message`, one after the other until the end of the input.

    Raises:
        SpecError: no such model is served.
        TransientError: the gateway does not answer.
    """
    layout, _ = here()
    model = served_model(layout, name)
    if message is not None:
        answer(layout, model, message, max_tokens)
        return
    console.print(f"Talking to {model}. An empty line ends it.")
    while question := _ask():
        answer(layout, model, question, max_tokens)


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


def answer(layout: Layout, model: str, message: str, max_tokens: int) -> None:
    """Prints the model's answer as it streams in, and which version gave it."""
    url = f"{layout.ports().url('gateway')}/v1/chat/completions"
    headers = {"Authorization": f"Bearer {layout.access().api_key}"}
    body = {
        "model": model,
        "messages": [{"role": "user", "content": message}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
    }
    try:
        with httpx.stream("POST", url, json=body, headers=headers, timeout=TIMEOUT_S, trust_env=False) as response:
            if response.status_code != 200:
                raise SpecError(f"the gateway answered {response.status_code}: {response.read().decode()[:500]}")
            for piece in pieces(response.iter_lines()):
                console.print(piece, end="", markup=False)
            console.print(f"\n[dim]{model} version {response.headers.get('x-slipway-version', 'not known')}[/dim]")
    except httpx.TransportError as error:
        raise TransientError(f"the gateway at {url} does not answer ({error}): run `./slipway up`") from error


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
