"""Probes of one traffic step: the same prompt to the canary and to the stable version, in threads of their own.

A probe that hangs holds up neither the judge nor, for long, the next probe. Answers are streamed, so that the first
token and the time between two tokens are measured, and scored where the right answer is known.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx

from pipeline.fleet.gateway import probe_key
from pipeline.fleet.parts import Fleet
from pipeline.fleet.probes import Answer, Prompt, ask_streamed
from pipeline.fleet.state import Deployment

PROBE_TIMEOUT_S = 30.0
IMPATIENT_S = 2.0
"""A probe that has taken so long is left to itself, and another may begin beside it."""
MAX_AT_ONCE = 8
AWAY_POLL_S = 1.0
"""While the gateway itself does not answer."""


@dataclass
class Probed:
    """What the probes of one step found. Changed and read under the lock of `Probing`."""

    probes: int = 0
    refusals: int = 0
    """Failed probes that the gateway does not count as errors: no answer, another version's, or a 4xx that the stable
    version does not give for the same prompt."""
    canary: list[Answer] = field(default_factory=list)
    """Good answers."""
    stable: list[Answer] = field(default_factory=list)
    scores: list[tuple[float, float]] = field(default_factory=list)
    """Of the canary's and the stable version's answer to the same prompt, from 0 to 1."""


@dataclass(kw_only=True)
class Probing:
    """Sends probes when it is told that more are wanted."""

    fleet: Fleet
    model: str
    canary: Deployment
    stable: Deployment | None
    prompts: Iterator[Prompt]
    metric: Callable[[str, str], float]
    """An answer and its reference → 0 to 1."""
    found: Probed = field(default_factory=Probed)
    under_way: dict[int, float] = field(default_factory=dict)
    """When each probe that has not ended began (monotonic)."""
    begun: int = 0
    """Probes so far: each version is asked first in turn."""
    away_until: float = 0.0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.client = httpx.Client(
            base_url=self.fleet.gateway.url,
            headers={"authorization": f"Bearer {probe_key(self.fleet.layout)}"},
            timeout=PROBE_TIMEOUT_S,
            trust_env=False,
            verify=False,
        )

    def close(self) -> None:
        """Probes that still wait for an answer end by themselves, and count no more."""
        self.over.set()
        self.client.close()

    def take(self) -> Probed:
        """What was found since the last time."""
        with self.lock:
            found, self.found = self.found, Probed()
            return found

    def more(self) -> None:
        """Begins another probe, unless one has just begun or the gateway is away."""
        now = time.monotonic()
        with self.lock:
            youngest = max(self.under_way.values(), default=0.0)
            busy = now - youngest < IMPATIENT_S or len(self.under_way) >= MAX_AT_ONCE
            if busy or now < self.away_until:
                return
            self.begun += 1
            turn = {"canary_first": self.begun % 2 == 1}
            arguments = (next(self.prompts), now)
            thread = threading.Thread(target=self._probe, args=arguments, kwargs=turn, name="probe", daemon=True)
            self.under_way[id(thread)] = now
        thread.start()

    def _probe(self, prompt: Prompt, began: float, *, canary_first: bool) -> None:
        try:
            beside = None if canary_first or not self.stable else self._ask(prompt, "never")
            asked = time.monotonic() if beside else began
            answer = self._ask(prompt, "always")
            if self._gateway_was_away(answer, asked):
                self._say(f"the gateway is away, which says nothing of the canary; waiting for it: {answer.failure}")
                self.away_until = time.monotonic() + AWAY_POLL_S
                return
            if canary_first and self.stable:
                beside = self._ask(prompt, "never")
            self._note(prompt, answer, beside)
        finally:
            with self.lock:
                self.under_way.pop(id(threading.current_thread()))

    def _ask(self, prompt: Prompt, canary: str) -> Answer:
        try:
            return ask_streamed(self.client, self.model, prompt, canary=canary)
        except RuntimeError as error:  # the client was closed between two probes: the step is over
            return Answer(failure=str(error), connected=False)

    def _note(self, prompt: Prompt, answer: Answer, beside: Answer | None) -> None:
        if answer.status == 200:
            answer = answer.expecting(self.canary.version, str(self.canary.generation))
        if beside and not self._is_stable(beside):
            beside = None
        refused = not answer.good and answer.status < 500 and not (beside and 400 <= answer.status == beside.status)
        with self.lock:
            if self.over.is_set():
                return
            self.found.probes += 1
            self.found.refusals += refused
            if answer.good:
                self.found.canary.append(answer)
            if beside and beside.good:
                self.found.stable.append(beside)
                if answer.good and prompt.reference is not None:
                    pair = (self.metric(answer.text, prompt.reference), self.metric(beside.text, prompt.reference))
                    self.found.scores.append(pair)
        if refused:
            self._say(f"probe failed: {answer.failure}")

    def _is_stable(self, answer: Answer) -> bool:
        """Not where the gateway fell back on another version, which may be the canary's; its own refusals name none."""
        return self.stable is not None and answer.generation in (None, str(self.stable.generation))

    def _say(self, message: str) -> None:
        if not self.over.is_set():
            self.fleet.say(message)

    def _gateway_was_away(self, answer: Answer, began: float) -> bool:
        """Whether a probe has no answer because there was no gateway, or one that began after the probe did, at `began`
        (monotonic)."""
        if answer.status != 0:
            return False
        if not answer.connected:
            return True
        uptime_s = self.fleet.gateway.uptime_s()
        return uptime_s is None or uptime_s <= time.monotonic() - began
