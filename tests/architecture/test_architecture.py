"""The rules that keep the rooms apart and the tree free of what belongs to one machine."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pipeline.settings import ROOT

OUR_CODE = ("pipeline", "plugins", "dags")
READS_ENVIRONMENT = {
    "pipeline/settings.py",
    "pipeline/fleet/replica_middleware.py",  # loaded by the engine, where no other module of ours is
    "plugins/slipway_airflow/backends/process.py",  # hands a job the worker's environment, less Airflow's own
    "plugins/slipway_airflow/backends/process_runner.py",  # a script of its own that passes it on to the nodes
}
MODULE_LINES = 450
DAG_LINES = 120
FUNCTION_LINES = 60
POSITIONAL_PARAMETERS = 5
"""Hard limits, well above what is usual here: 100 to 300 lines a module, about ten a function, three parameters."""

REGISTRIES = ("pypi", "files.pythonhosted", "download.pytorch", "registry.npmjs", "deb.debian", "conda.anaconda")
FOREIGN = re.compile(
    r"(?<![\w.}$-])(?!/home/me/)/(?:home|Users|root|work|shared)/\w+|(?:"
    + "|".join(map(re.escape, REGISTRIES))
    + r")\.(?:org|com)\b"
)
"""Folders of one machine, and addresses of package registries, which are each user's own setting."""


@cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def modules() -> list[Path]:
    """Every module of ours, relative to the root."""
    return sorted(path.relative_to(ROOT) for room in OUR_CODE for path in (ROOT / room).rglob("*.py"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (
        node for node in ast.walk(syntax(ROOT / path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def imports(path: Path) -> Iterator[str]:
    """The top-level names of all that a module imports."""
    for node in ast.walk(syntax(ROOT / path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).partition(".")[0]


def reads_environment(tree: ast.AST) -> Iterator[int]:
    """The lines that name os.environ or os.getenv in any form."""
    names = {"environ", "environb", "getenv"}
    for node in ast.walk(tree):
        direct = isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node.value) == "os"
        imported = isinstance(node, ast.ImportFrom) and node.module == "os" and names & {a.name for a in node.names}
        if direct or imported:
            yield node.lineno  # type: ignore[attr-defined]


def tracked_files() -> list[Path]:
    """What the repository holds; where it is no checkout, all that is neither hidden nor built."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    names = listed.stdout.splitlines() if listed.returncode == 0 else []
    found = [ROOT / name for name in names] or [
        path
        for path in ROOT.rglob("*")
        if not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(ROOT).parts)
    ]
    return [path for path in found if path.is_file()]


def test_imports_go_one_way() -> None:
    """dags → plugins → pipeline, and steps keep to themselves: import-linter checks what pyproject.toml says."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}", "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_contracts_import_only_pydantic_and_the_standard_library() -> None:
    """So that every environment, and a DAG file, can load them."""
    allowed = {*sys.stdlib_module_names, "pydantic", "pipeline"}
    foreign = {
        f"{path}: {name}"
        for path in modules()
        if path.parts[1] == "contracts"
        for name in imports(path)
        if name not in allowed
    }
    assert foreign == set()


def test_contracts_load_fast_and_bring_nothing_heavy() -> None:
    """Under half a second of CPU time, best of three: a DAG file pays for it at each parse."""
    program = (
        "import sys, time; import pydantic; start = time.process_time(); import pipeline.contracts.release\n"
        "print(time.process_time() - start); print(*sys.modules)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    ]
    seconds = min(float(run.splitlines()[0]) for run in runs)
    loaded = {name.partition(".")[0] for name in runs[0].splitlines()[1].split()}

    assert loaded.isdisjoint(
        {"airflow", "boto3", "mlflow", "torch", "transformers", "vllm", "great_expectations", "yaml"}
    )
    assert seconds < 0.5


@pytest.mark.parametrize("module", ["pipeline.cli", "pipeline.artifacts", "pipeline.recipe_files"])
def test_the_entry_point_loads_without_the_heavy_libraries(module: str) -> None:
    """They load when a step or an S3 store needs them."""
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}

    assert loaded.isdisjoint({"airflow", "boto3", "mlflow", "torch", "transformers", "vllm", "great_expectations"})


def test_the_environment_is_read_in_one_place() -> None:
    """Everything else takes settings; the exceptions are programs of their own and say so above."""
    readers = {
        f"{path}:{line}"
        for path in modules()
        if path.as_posix() not in READS_ENVIRONMENT
        for line in reads_environment(syntax(ROOT / path))
    }
    assert readers == set()


@pytest.mark.parametrize("code", ["import os\nos.environ['X']", "from os import environ", "import os\nos.getenv('X')"])
def test_a_module_that_reads_the_environment_is_found(code: str) -> None:
    """The rule above looks for the right thing."""
    assert list(reads_environment(ast.parse(code)))


def test_no_file_names_a_machines_folders_or_a_package_registry() -> None:
    """The tree works wherever it lies, with whatever index pip is configured for."""
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in FOREIGN.finditer(text)]
    assert found == []


def test_modules_and_functions_stay_small() -> None:
    """One that grows past these limits has two subjects."""
    too_long = [
        f"{path}: {lines} lines"
        for path in modules()
        if (lines := len((ROOT / path).read_text(encoding="utf-8").splitlines()))
        > (DAG_LINES if path.parts[0] == "dags" else MODULE_LINES)
    ]
    for path in modules():
        for function in functions(path):
            lines = int(function.end_lineno or 0) - function.body[0].lineno + 1
            positional = [
                argument.arg
                for argument in (*function.args.posonlyargs, *function.args.args)
                if argument.arg not in ("self", "cls")
            ]
            if lines > FUNCTION_LINES or len(positional) > POSITIONAL_PARAMETERS:
                too_long.append(
                    f"{path}:{function.lineno} {function.name}: {lines} lines, {len(positional)} parameters"
                )
    assert too_long == []


def test_every_module_says_what_it_is_for() -> None:
    """In a docstring."""
    assert [str(path) for path in modules() if not ast.get_docstring(syntax(ROOT / path))] == []


def test_names_that_say_nothing_are_not_used() -> None:
    """A module is named after its subject."""
    vague = {"utils", "helpers", "common", "manager", "misc"}
    assert [str(path) for path in modules() if path.stem in vague] == []
