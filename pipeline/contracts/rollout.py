"""The recipe's section `rollout`: how traffic moves to a new version, and how many replicas serve it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.contracts.base import Contract
from pipeline.contracts.finetune import Fraction, PositiveInt

OnUndecided = Literal["promote", "roll_back", "by_figures"]
Routing = Literal["fewest_requests", "prefix"]


class Shadow(Contract):
    """A canary's first trial: copies of clients' requests, whose answers are thrown away."""

    percent: Annotated[int, Field(ge=1, le=100)] = 100
    """Of clients' requests are copied to the canary."""
    seconds: Annotated[float, Field(ge=1)] = 30.0
    """Of observation, before any client sees the canary."""


class Autoscale(Contract):
    """Between which numbers the replicas of what serves follow the load, and how fast. See docs/autoscaling.md."""

    min_replicas: Annotated[int, Field(ge=1, le=32)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=32)]
    requests_per_replica: PositiveInt = 8
    """Requests, running and waiting, that one replica is meant to have at a time."""
    kv_cache_share: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of its KV cache that one replica is meant to use."""
    up_after_s: Annotated[float, Field(ge=0)] = 10.0
    """Replicas are added when the load was above their targets for so long."""
    down_after_s: Annotated[float, Field(ge=0)] = 300.0
    """One is removed when the load was below `down_share` of the others' targets for so long."""
    down_share: Annotated[float, Field(gt=0, lt=1)] = 0.7

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) must not be above max_replicas ({self.max_replicas})")
        return self


class Rollout(Contract):
    """How traffic moves to a new version."""

    replicas: Annotated[int, Field(ge=1, le=32)] = 2
    steps: tuple[Annotated[int, Field(ge=1, le=100)], ...] = (5, 25, 50, 100)
    """Per cent of the traffic on the canary, rising to 100."""
    shadow: Shadow | None = None
    """Before the first of the steps."""
    strategy: Literal["auto", "surge", "replace"] = "auto"
    """surge: a second set of replicas beside the first. replace: one replica after the other makes place for a new one.
    auto: surge where the measured memory has room for a second set, else replace."""
    step_s: Annotated[float, Field(ge=1)] = 10.0
    """Seconds of observation at each step at most, unless requests are too few; less once the canary is shown not
    worse, or worse."""
    min_requests: Annotated[int, Field(ge=0)] = 20
    """Canary requests wanted at each step; where clients send fewer, probes fill up and the report says so."""
    golden_per_s: Annotated[float, Field(ge=0)] = 2.0
    """Prompts of the version's own evaluation that both versions are asked each second, whatever clients send."""
    max_error_rate: Fraction = 0.01
    """Of the canary's requests. A canary that is shown to fail more often is rolled back at once."""
    max_error_rate_rise: Fraction = 0.01
    """How much more often than the stable version the canary may fail, as a share of its requests."""
    max_latency_ratio: Annotated[float, Field(gt=0)] = 3.0
    """The canary's ÷ the stable version's: median, 90th and 99th percentile of time to first token, inter-token and
    end-to-end latency."""
    max_ttft_ratio: Annotated[float, Field(gt=0)] | None = None
    """Of time to first token alone; max_latency_ratio if left out."""
    max_itl_ratio: Annotated[float, Field(gt=0)] | None = None
    """Of inter-token latency alone; max_latency_ratio if left out."""
    max_score_drop: Fraction = 0.02
    """How much less the canary may score on its golden prompts than the stable version, asked side by side."""
    on_undecided: OnUndecided = "by_figures"
    """What happens at a step whose time is up with the canary shown neither worse nor not worse. promote: it goes on.
    roll_back: it goes back. by_figures: it goes back if errors or a median lie beyond their margin even after five
    times min_requests, else it goes on."""
    ready_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    keep_warm_s: Annotated[float, Field(ge=0)] = 120.0
    """The replaced version's replicas stay up this long, so that rolling back is a weight change."""
    max_model_len: PositiveInt = 256
    kv_cache_mib: PositiveInt = 128
    routing: Routing = "fewest_requests"
    """fewest_requests: a request goes to the replica that has fewer open. prefix: requests that begin alike go to the
    same replica, until it has a quarter more than its share."""
    autoscale: Autoscale | None = None
    """Lets the number of replicas follow the load; None: `replicas`, always."""

    @model_validator(mode="after")
    def _replicas_are_within_bounds(self) -> Self:
        scale = self.autoscale
        if scale and not scale.min_replicas <= self.replicas <= scale.max_replicas:
            raise ValueError(
                f"replicas ({self.replicas}) must be from autoscale.min_replicas ({scale.min_replicas}) to"
                f" autoscale.max_replicas ({scale.max_replicas}): the first version starts with so many"
            )
        return self

    @model_validator(mode="after")
    def _steps_rise(self) -> Self:
        if not self.steps or list(self.steps) != sorted(set(self.steps)) or self.steps[-1] != 100:
            raise ValueError(f"steps {list(self.steps)} must rise and end at 100, e.g. [5, 25, 50, 100]")
        return self
