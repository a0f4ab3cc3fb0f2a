"""`slipway keys`: the options of its commands. Their work is in `pipeline.commands.keys`, imported when asked for."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="API keys of the gateway's clients: one each, with limits.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The client: lower-case letters, digits and hyphens.")]


@app.command()
def create(
    name: Name,
    rate: Annotated[float | None, typer.Option(metavar="R", help="Requests a second, in the long run.")] = None,
    burst: Annotated[int | None, typer.Option(metavar="B", help="Requests at once, above the rate.")] = None,
    tokens_per_day: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of prompts and completions, from midnight to midnight UTC.")
    ] = None,
    may_choose: Annotated[
        bool, typer.Option("--may-choose", help="It may force or avoid the canary with the header x-slipway-canary.")
    ] = False,
) -> None:
    """Make a key for a client. It is shown once and kept nowhere.

    Example: `slipway keys create checkout --rate 20 --burst 40 --tokens-per-day 2000000`
    """
    from pipeline.commands import keys

    allowed = {"rate": rate, "burst": burst, "tokens_per_day": tokens_per_day, "may_choose": may_choose}
    keys.create(name, allowed)


@app.command("list")
def show(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs instead.")] = False) -> None:
    """Show who has a key, what it allows, and what of it is used today."""
    from pipeline.commands import keys

    keys.show(as_json=as_json)


@app.command()
def rotate(
    name: Name,
    grace: Annotated[
        str, typer.Option(metavar="TIME", help="How long the key before goes on counting, e.g. 90s, 10m, 24h, 7d.")
    ] = "24h",
) -> None:
    """Make a new key for a client; the one before counts for a while, so that nobody is turned away.

    Example: `slipway keys rotate checkout --grace 1h`
    """
    from pipeline.commands import keys

    keys.rotate(name, grace)


@app.command()
def revoke(name: Name) -> None:
    """Refuse a client from now on. Its name stays taken."""
    from pipeline.commands import keys

    keys.revoke(name)
