"""The commands `slipway rollout …` and their options; the work of each is in a module of its own."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Look at a model's rollout, hold it, and let it go on.")

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

    Example: `slipway rollout status support-intents --watch`
    """
    from pipeline.commands import rollout_status as command

    raise typer.Exit(command.show(name, watch=watch, as_json=as_json))


@app.command()
def pause(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why, for whoever looks at the rollout.")],
) -> None:
    """Hold the rollout of a model where it is, until `slipway rollout resume`.

    The weights stay, and the watch goes on: a canary that is found worse is taken back all the same. Exit code 64:
    no rollout runs, it has passed its last step, or it is paused already.

    Example: `slipway rollout pause support-intents --reason "a customer complains"`
    """
    from pipeline.commands import rollout_controls

    rollout_controls.pause(name, reason)


@app.command()
def resume(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why, for whoever looks at the rollout.")] = "",
) -> None:
    """Let a paused rollout go on from where it is.

    Exit code 64: no rollout runs, or it is not paused.

    Example: `slipway rollout resume support-intents`
    """
    from pipeline.commands import rollout_controls

    rollout_controls.resume(name, reason)
