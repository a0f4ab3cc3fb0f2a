"""Recipes with a schedule get a DAG of their own: a generated file in home/dags for each.

    write_schedules(home_path, known_recipes(home_path).values())

A generated file, because Airflow finds schedules by parsing DAG files, and a DAG file must not read recipes while it
is parsed. The recipe itself is read when a run starts, so only a changed `schedule` or `name` needs a new file.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import SpecError
from pipeline.recipe_files import check_recipe, load_recipe
from pipeline.stack.layout import Layout

PREFIX = "release_"
TEMPLATE = '''"""Runs the recipe {path} by its schedule. Generated; edit the recipe instead."""

from slipway_airflow.release_dag import release_dag

dag = release_dag(dag_id={dag_id!r}, schedule={schedule!r}, recipe={recipe!r})
'''


def write_schedules(home_path: Path, recipe_paths: Iterable[Path]) -> list[Path]:
    """Makes home/dags match the schedules of the recipes; returns the DAG files.

    A recipe that is broken keeps the file that it has: its run will say what is wrong, where its absence would not. Of
    two that have a schedule and the same name the first wins; the other is said to be left out.
    """
    folder = Layout(home_path).dags_path
    folder.mkdir(parents=True, exist_ok=True)
    wanted, broken = _wanted(recipe_paths)
    for name, text in wanted.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            temporary = folder / f".{name}.new"
            temporary.write_text(text)
            temporary.replace(path)
    for path in folder.glob(f"{PREFIX}*.py"):
        if path.name not in wanted and not any(str(recipe) in path.read_text() for recipe in broken):
            path.unlink()
    return sorted(folder.glob(f"{PREFIX}*.py"))


def _wanted(recipe_paths: Iterable[Path]) -> tuple[dict[str, str], list[Path]]:
    """File names with their text, and the recipes that cannot be read."""
    wanted: dict[str, str] = {}
    broken: list[Path] = []
    for path in recipe_paths:
        try:
            recipe = check_recipe(load_recipe(path))
        except SpecError:
            broken.append(path)
            continue
        if recipe.schedule is None:
            continue
        name = f"{PREFIX}{recipe.name.replace('-', '_')}.py"
        if name in wanted:
            print(f"{path} gets no schedule: another recipe is called {recipe.name}, too; rename one", file=sys.stderr)
            continue
        dag_id = name.removesuffix(".py")
        wanted[name] = TEMPLATE.format(path=path, dag_id=dag_id, schedule=recipe.schedule, recipe=str(path))
    return wanted, broken
