"""What one traffic step has seen so far: counts and times, kept so that they can be compared after every answer."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from pipeline.fleet.analysis.sequences import MeanDifference, Sample

Side = Literal["canary", "stable"]
Source = Literal["clients", "probes"]
Measure = Literal["time to first token", "inter-token latency", "end-to-end latency"]
MEASURES: tuple[Measure, ...] = ("time to first token", "inter-token latency", "end-to-end latency")


@dataclass
class Evidence:
    """Of one step. Everything but the score begins anew with each step."""

    requests: int = 0
    """Attempts at the canary's replicas, clients' and probes'."""
    errors: int = 0
    stable_requests: int = 0
    stable_errors: int = 0
    probes: int = 0
    refusals: int = 0
    """Failed probes that the gateway does not count as errors. Clients' requests that the canary refuses (4xx) may be
    the clients' fault, so only probes tell; they are judged among themselves, or much traffic would hide them."""
    client_requests: int = 0
    """Answers of the canary that clients got."""
    weight: int = 0
    """The canary's share of the traffic, in per cent."""
    has_stable: bool = True
    score: MeanDifference | None = None
    """Canary − stable, golden prompt by golden prompt, since the rollout began; None where there are none."""
    samples: dict[tuple[Side, Source, Measure], Sample] = field(default_factory=dict)
    """In milliseconds."""

    def add(self, side: Side, source: Source, measure: Measure, times_s: Iterable[float]) -> None:
        """Takes in times, in seconds."""
        sample = self.samples.setdefault((side, source, measure), Sample())
        for time_s in times_s:
            sample.add(1000 * time_s)

    def sample(self, side: Side, source: Source, measure: Measure) -> Sample:
        return self.samples.get((side, source, measure), Sample())

    @property
    def num_requests(self) -> int:
        """What the canary was asked, as far as is known: the gateway's figures may lag behind the probes."""
        return max(self.requests, self.errors, self.probes)

    def source(self, measure: Measure, *, wanted: int) -> Source | None:
        """Whose times are compared: clients' if there are `wanted` on both sides, else the probes'; None if neither.

        Where the canary is busy with clients and the stable version has none, at 100 %, say, probes would compare a
        busy version with an idle one: nothing is compared then.
        """
        sides: tuple[Side, Side] = ("canary", "stable")
        if min(len(self.sample(side, "clients", measure)) for side in sides) >= wanted:
            return "clients"
        if min(len(self.sample(side, "probes", measure)) for side in sides) == 0:
            return None
        return None if self.weight >= 100 and self.client_requests >= wanted else "probes"
