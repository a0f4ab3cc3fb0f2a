"""`slipway trace`: from one answer to the data that it was learned from."""

from collections.abc import Iterator
from datetime import datetime

from pipeline.commands.output import console, here, in_bytes, in_seconds
from pipeline.contracts.trace import Request, RolloutSeen, Trace
from pipeline.errors import DataError
from pipeline.trace import trace

WIDTH = len("evaluate_compressed") + 2


def show(request_id: str, *, as_json: bool) -> None:
    """Prints what is known.

    Raises:
        SpecError: there is no such request.
        DataError: a replica answered, but something behind the answer could not be found.
    """
    layout, _ = here()
    found = trace(layout, request_id)
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        for name, text in _lines(found):
            console.print(f"[bold]{name:<{WIDTH}}[/bold]", end="", markup=True)
            console.print(text, soft_wrap=True, markup=False)
    if found.missing and found.request.version is not None:
        raise DataError(f"request {request_id} could not be followed to its end: {'; '.join(found.missing)}")


def _lines(found: Trace) -> Iterator[tuple[str, str]]:
    yield from _request(found.request)
    if found.rollout:
        yield from _rollout(found.rollout)
    if found.moment:
        shares = ", ".join(f"{name}: {weight} %" for name, weight in found.moment.shares.items())
        yield "served then", f"{shares}; the newest rollout was {found.moment.generation}"
    yield from _version(found)
    for run in found.runs:
        where = f"  {run.url}" if run.url else ""
        yield run.step, f"{run.started_at}, {in_seconds(run.duration_s)}{where}"
        yield "", run.artifact_uri
    yield from _inputs(found)
    if found.request.version is None:
        for gap in found.missing:
            yield "nothing more", gap


def _request(request: Request) -> Iterator[tuple[str, str]]:
    took = "" if request.duration_ms is None else f" in {request.duration_ms:.1f} ms"
    yield "request", f"{request.request_id}  {_clock(request.at)}  {request.path or ''}  {request.status}{took}"
    yield "client", request.client or "none: it had no valid key"
    if request.version is not None:
        asked = f", after {request.attempts} attempts" if (request.attempts or 1) > 1 else ""
        yield "answered by", f"version {request.version}, deployment {request.deployment}, {request.upstream}{asked}"


def _rollout(rollout: RolloutSeen) -> Iterator[tuple[str, str]]:
    ended = f" at {_clock(rollout.ended_at)}" if rollout.ended_at else ""
    why = f": {rollout.reason}" if rollout.reason else ""
    yield "rollout", f"{rollout.generation}, from {rollout.previous or 'nothing'} to version {rollout.version}"
    yield "", f"began {_clock(rollout.started_at)}, {rollout.outcome}{ended}{why}"
    yield "asked for by", f"{rollout.by}{f': {rollout.why}' if rollout.why else ''}"
    if rollout.url:
        yield "", rollout.url
    if rollout.entries:
        yield "audit log", f"entries {', '.join(map(str, rollout.entries))} ({rollout.known_from} told the rest)"


def _version(found: Trace) -> Iterator[tuple[str, str]]:
    if version := found.version:
        yield "version", f"{version.name} {version.version}, registered {version.created_at}  {version.url}"
        yield "bundle", f"{version.bundle_digest}  {version.bundle_uri}"


def _inputs(found: Trace) -> Iterator[tuple[str, str]]:
    if recipe := found.recipe:
        yield "recipe", f"{recipe.name}, {recipe.method} of {recipe.base_model}, digest {recipe.digest}"
    if quantization := found.quantization:
        yield "quantization", f"{quantization.scheme} ({in_bytes(quantization.size_bytes)}): {quantization.reason}"
    if data := found.validation:
        report = data.report_uri or f"{data.artifact_uri} (it holds no report)"
        yield "validation", f"{data.rules} rules met by {data.train_rows} and {data.eval_rows} rows  {report}"
        yield "data set", f"{data.artifact_digest}"
        yield "  train", f"{data.train_digest}  {data.train_uri}"
        yield "  eval", f"{data.eval_digest}  {data.eval_uri}"


def _clock(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().isoformat(sep=" ", timespec="seconds")
