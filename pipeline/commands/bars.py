"""An interval as a bar of characters, for tables in a terminal."""

from pipeline.fleet.analysis.comparison import Comparison

WIDTH = 33
ROOM = 1.25
"""How much wider the bar is than what it has to show."""


def interval_bar(found: Comparison, width: int = WIDTH) -> str:
    """Where the interval lies between "the same" and the margin.

    `│` is no difference, `┊` the margin, `━` the interval, `●` what was measured; an end that is not known yet runs off
    the bar as `╌`.
    """
    measured = None if found.canary is None or found.stable is None else found.canary - found.stable
    shown = [abs(value) for value in (found.low, found.high, found.margin, measured) if value is not None]
    reach = ROOM * max(shown) or 1.0

    def place(value: float) -> int:
        return round((value / reach + 1) / 2 * (width - 1))

    low = 0 if found.low is None else place(found.low)
    high = width - 1 if found.high is None else place(found.high)
    open_left, open_right = found.low is None, found.high is None
    line = [" "] * width
    for at in range(low, high + 1):
        line[at] = "╌" if open_left or open_right else "━"
    line[place(0)], line[place(found.margin)] = "│", "┊"
    if measured is not None:
        line[place(measured)] = "●"
    return "".join(line)
