"""`slipway plan`: what a recipe's fine-tuning will take, which parallelism would be best, and what to change if nothing
fits. Nothing runs, and nothing is fetched but the model's config.json."""

import json

from rich.table import Table

from pipeline.commands.output import console, here
from pipeline.commands.release import read_recipe
from pipeline.model_configs import recipe_shapes
from pipeline.planning import report
from pipeline.planning.hardware import parse_cluster
from pipeline.planning.plans import Plan, plan_training

ROWS = 12
"""Of the alternatives' table."""


def show(recipe: str, overrides: list[str], *, cluster: str | None, as_json: bool) -> int:
    """Prints the plan.

    Returns:
        0 if the training fits, 64 if not.

    Raises:
        SpecError: the recipe or the cluster is wrong, or the model is of a kind that cannot be planned.
    """
    layout, _ = here()
    _, checked, _ = read_recipe(layout, recipe, overrides)
    given = None
    if cluster is not None:
        settings, given = parse_cluster(cluster, checked.finetune)
        checked = checked.model_copy(update={"finetune": settings})
    shape, teacher = recipe_shapes(checked)
    plan = plan_training(checked, shape, teacher=teacher, cluster=given)
    if as_json:
        print(json.dumps(report.as_json(plan), indent=2))
    else:
        _print(plan)
    return 64 if plan.problem else 0


def _print(plan: Plan) -> None:
    console.print(report.summary(plan), soft_wrap=True)
    work = plan.work
    console.print(
        f"{work.shape.parameters / 1e6:,.2f} M parameters, {work.trained_parameters / 1e6:,.2f} M of them trained;"
        f" sequences of {work.sequence_tokens} tokens, all full",
        soft_wrap=True,
    )
    if work.settings.balance == "measured":
        console.print("balance: measured gives faster ranks more rows than the equal shares that are planned here")
    found = plan.expected or plan.choice.smallest
    if found is not None:
        _print_memory(plan, report.memory_rows(found))
        sent = ", ".join(f"{part.kind} {part.bytes / 1e6:,.1f} MB" for part in found.time.traffic) or "nothing"
        console.print(f"sent by a rank in a step: {sent}", soft_wrap=True)
    _print_candidates(plan)
    console.print("\nFigures")
    for name, figure in plan.hardware.figures.items():
        console.print(f"  {name}: {figure.value:.3g} {figure.unit} ({figure.source})", soft_wrap=True)
    if plan.problem:
        console.print(f"\n[red]✗[/red] {plan.problem}", soft_wrap=True)
        for remedy in plan.remedies:
            console.print(f"  enough would be {remedy}", soft_wrap=True)


def _print_memory(plan: Plan, rows: list[tuple[str, ...]]) -> None:
    whose = "an accelerator" if plan.hardware.accelerated else "a rank"
    fewest = plan.work.settings.min_nodes
    when = f" when {fewest} of {plan.hardware.nodes} nodes are left" if fewest else ""
    table = Table(title=f"GB of {whose}, by moment{when}", title_justify="left", box=None)
    for column in report.MEMORY_COLUMNS:
        table.add_column(column, justify="left" if column == "moment" else "right")
    for row in rows:
        table.add_row(*row)
    console.print("")
    console.print(table)


def _print_candidates(plan: Plan) -> None:
    table = Table(title="Ways to spread it", title_justify="left", box=None)
    for column in ("parallelism", "a rank", "a step", "verdict", "why"):
        table.add_column(column, justify="right" if column in ("a rank", "a step") else "left")
    for row in report.candidate_rows(plan, ROWS):
        table.add_row(*row)
    console.print("")
    console.print(table)
    worked = sum(candidate.forecast is not None for candidate in plan.choice.candidates)
    if worked > ROWS:
        console.print(f"  and {worked - ROWS} more; --json shows all")
    for reason, count in report.refused_reasons(plan).items():
        console.print(f"  {count} × {reason}", soft_wrap=True)
