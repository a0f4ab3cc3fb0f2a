"""The commands `slipway rollout …` and their options; the work of each is in a module of its own."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Look at a model's rollout.")

Name = Annotated[str, typer.Argument(help="The registered model.")]


@app.command()
def status(
    name: Name,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it live until it ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """How far a model's newest rollout is: its step, the canary's share, what is compared, what it waits for.

    Exit code 0: promoted, or nothing to do; without `--watch`, also: still running. 65: failed or rolled back.
    64: there is no such model, or it was never rolled out.

    Example: `slipway rollout status demo --watch`
    """
    from pipeline.commands import rollout_status as command

    raise typer.Exit(command.show(name, watch=watch, as_json=as_json))
