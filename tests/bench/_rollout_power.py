"""How soon a bad canary is caught, how often a good one is rolled back, and what threshold rules make of the same.

    .venvs/control/bin/python tests/bench/_rollout_power.py [COURSES] [--write]

Simulated with a fixed seed (tests/incidents.py); three minutes with 100 courses. No part of `make bench`: nothing here
depends on the machine. With --write it renews the tables between the marks in docs/rollouts.md and the picture
docs/rollout_power.png.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.contracts.rollout import Rollout  # noqa: E402
from tests.incidents import INCIDENTS, LIMITS, RULES, Course, Incident, Verdict, slipway  # noqa: E402

LOOK_S = 5.0
"""Between two looks of the simulated rollout: more would change seconds, not minutes, and take longer."""
HOUR = 60.0
CAUGHT: dict[str, tuple[Incident, Rollout]] = {
    "2 % errors, limit 1 %": (Incident(name="", error_rate=0.02, minutes=HOUR), LIMITS),
    "2 % errors, limit 0.5 %": (
        Incident(name="", error_rate=0.02, minutes=HOUR),
        LIMITS.model_copy(update={"max_error_rate": 0.005, "max_error_rate_rise": 0.005}),
    ),
    "5 % errors, limit 1 %": (Incident(name="", error_rate=0.05, minutes=HOUR), LIMITS),
    "TTFT 20 % slower, default limits": (Incident(name="", slower=1.2, minutes=HOUR), Rollout()),
    "TTFT 20 % slower, limit 10 %": (Incident(name="", slower=1.2, minutes=HOUR), LIMITS),
    "TTFT 50 % slower, limit 10 %": (Incident(name="", slower=1.5, minutes=HOUR), LIMITS),
    "score 3 points lower, limit 1": (Incident(name="", score_drop=0.03, minutes=HOUR), LIMITS),
    "score 3 points lower, limit 0": (
        Incident(name="", score_drop=0.03, minutes=HOUR),
        LIMITS.model_copy(update={"max_score_drop": 0.0}),
    ),
    "score 10 points lower, limit 1": (Incident(name="", score_drop=0.10, minutes=HOUR), LIMITS),
}
DOCUMENT, PICTURE = ROOT / "docs" / "rollouts.md", ROOT / "docs" / "rollout_power.png"


def main() -> None:
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    courses = numbers[0] if numbers else 40
    caught = {name: power(incident, limits, courses) for name, (incident, limits) in CAUGHT.items()}
    beside = {
        incident.name: {name: outcomes(name, incident, courses) for name in RULES}
        for incident in (replace(one, minutes=30.0) for one in INCIDENTS)
    }
    for name, verdicts in caught.items():
        times = sorted(found.after_s for found in verdicts if found.rolled_back)
        line = {"name": f"simulated canary caught: {name}", "value": median(times) if times else None, "unit": "s"}
        print(json.dumps({**line, "caught": len(times), "of": courses}), flush=True)
    for name, rules in beside.items():
        shares = {rule: sum(found.rolled_back for found in verdicts) for rule, verdicts in rules.items()}
        print(json.dumps({"name": f"simulated rollbacks: {name}", "of": courses, **shares}), flush=True)
    if "--write" in sys.argv:
        write("power", power_table(caught))
        write("rules", rules_table(beside))
        draw(caught)


def power(incident: Incident, limits: Rollout, courses: int) -> list[Verdict]:
    return [slipway(Course.draw(incident, 1000 + seed), look_s=LOOK_S, limits=limits) for seed in range(courses)]


def outcomes(rule: str, incident: Incident, courses: int) -> list[Verdict]:
    drawn = (Course.draw(incident, 5000 + seed) for seed in range(courses))
    if rule == "Slipway":
        return [slipway(course, look_s=LOOK_S) for course in drawn]
    return [RULES[rule](course) for course in drawn]


def power_table(caught: dict[str, list[Verdict]]) -> list[str]:
    rows = [
        "| the canary | caught within an hour | minutes, median | 9 of 10 within | canary requests | golden pairs |"
    ]
    rows.append("|---|---|---|---|---|---|")
    for name, verdicts in caught.items():
        found = [verdict for verdict in verdicts if verdict.rolled_back]
        cells = figures(found, len(verdicts)) if found else ["never", "", "", ""]
        rows.append(f"| {name} | {len(found) / len(verdicts):.0%} | {' | '.join(cells)} |")
    return rows


def figures(found: list[Verdict], courses: int) -> list[str]:
    """When, and after how much, those were caught that were."""
    minutes = [verdict.after_s / 60 for verdict in found]
    most = f"{quantiles(minutes, n=10)[8]:.1f}" if len(found) >= 0.9 * courses else "more"
    requests, pairs = (
        round(median(getattr(verdict, field) for verdict in found)) for field in ("canary_requests", "pairs")
    )
    return [f"{median(minutes):.1f}", most, f"{requests:,}", f"{pairs:,}"]


def rules_table(beside: dict[str, dict[str, list[Verdict]]]) -> list[str]:
    rows = [f"| what is wrong | {' | '.join(RULES)} |", f"|---|{'---|' * len(RULES)}"]
    for name, rules in beside.items():
        cells = []
        for verdicts in rules.values():
            found = [verdict.after_s for verdict in verdicts if verdict.rolled_back]
            share = f"{len(found) / len(verdicts):.0%}"
            cells.append(f"{share}, {median(found):.0f} s" if found else share)
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def write(mark: str, rows: list[str]) -> None:
    """Between `<!-- mark -->` and `<!-- /mark -->`."""
    text = DOCUMENT.read_text()
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    DOCUMENT.write_text(head + begin + "\n".join(rows) + "\n" + end + tail)


def draw(caught: dict[str, list[Verdict]]) -> None:
    """The share of courses that were caught, by minutes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 4.5), layout="constrained")
    for name, verdicts in caught.items():
        minutes = sorted(verdict.after_s / 60 for verdict in verdicts if verdict.rolled_back)
        shares = [100 * (index + 1) / len(verdicts) for index in range(len(minutes))]
        axes.step([0, *minutes, HOUR], [0, *shares, shares[-1] if shares else 0], where="post", label=name)
    axes.set(xlabel="minutes of a step with 5 canary requests and 2 golden prompts a second", ylabel="caught, %")
    axes.set_xscale("symlog", linthresh=1, subs=[2, 5])
    axes.set_xticks([0, 1, 2, 5, 10, 20, 60], labels=["0", "1", "2", "5", "10", "20", "60"])
    axes.set_xlim(0, HOUR)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right center")
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
