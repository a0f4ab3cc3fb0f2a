"""The commands `slipway gateway …`."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Look after the gateway.")


@app.command()
def restart(
    drain_s: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Seconds that the old one goes on with answers that it has begun. Kept from then on; 300 at first.",
        ),
    ] = None,
) -> None:
    """Let a new Envoy take over from the one that runs. No request is refused, and no stream is cut that ends in time.

    Another restart has to wait until the old one is gone.

    Example: `slipway gateway restart`
    """
    from pipeline import audit
    from pipeline.commands.output import console, here
    from pipeline.fleet import epochs, gateway

    layout, _ = here()
    audit.record(layout, action="gateway-restart", actor=audit.person(), details={"drain_s": drain_s})
    epoch = gateway.restart(layout, drain_s=drain_s)
    wanted = epochs.read_wanted(layout.gateway_path)
    for_s = wanted.drain_s if wanted else epochs.DRAIN_S
    console.print(
        f"Epoch {epoch.number} of the gateway takes requests; the one before finishes what it has begun, for {for_s} s."
    )
