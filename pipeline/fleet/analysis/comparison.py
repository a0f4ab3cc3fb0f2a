"""One comparison of the canary with the version that is served, as it is kept and shown."""

from typing import Literal

from pipeline.contracts.base import Contract

Verdict = Literal["not worse", "worse", "undecided"]


class Comparison(Contract):
    """What is known of one measure; `low` and `high` stay valid however often one looks."""

    measure: str
    """For people: "error rate", "time to first token, median"."""
    unit: str = ""
    """ms, points (of a hundred), or nothing."""
    canary: float | None = None
    stable: float | None = None
    """None where there is no other version, or no figure of it yet."""
    low: float | None = None
    """The interval of canary − stable, or of the canary's own figure where it is held to a limit; None: no end yet."""
    high: float | None = None
    margin: float
    """The canary is worse when the whole interval lies beyond this, not worse when none of it does. Beyond is above,
    for a score below."""
    verdict: Verdict = "undecided"
    num_canary: int
    num_stable: int = 0
    limit: str = ""
    """The recipe's field that the margin comes from."""

    def describe(self, *, named: bool = True) -> str:
        """A line for reports."""
        name = f"{self.measure} " if named else ""
        unit = f" {self.unit}" if self.unit else ""
        sides = " against ".join(f"{side:.4g}{unit}" for side in (self.canary, self.stable) if side is not None)
        interval = " to ".join("?" if end is None else f"{end:.4g}" for end in (self.low, self.high))
        return f"{name}{sides or 'no figures'}, {interval}{unit} (margin {self.margin:.4g}{unit}): {self.verdict}"
