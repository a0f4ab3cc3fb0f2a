"""`slipway up` and `slipway down`."""

import time
from collections.abc import Callable
from pathlib import Path

from pipeline.commands.output import console, here, in_seconds, local_only
from pipeline.errors import SpecError
from pipeline.fleet.doors import tls
from pipeline.stack.bring_up import Stack
from pipeline.stack.layout import Layout


def certificate(cert: Path | None, key: Path | None, *, plain: bool) -> Callable[[Layout], None]:
    """Keeps what the options say of TLS; without any of them, all stays as it was.

    Raises:
        SpecError: the options do not fit together.
    """
    if (cert is None) != (key is None) or (cert and plain):
        raise SpecError("give --tls-cert and --tls-key together, or --no-tls alone")
    if cert is None and not plain:
        return lambda layout: None
    chosen = tls.Certificate(cert_path=str(cert.absolute()), key_path=str(key.absolute())) if cert and key else None
    return lambda layout: tls.choose(layout, chosen)


def up(
    ports: dict[str, int], backend: str | None = None, choose: Callable[[Layout], None] = lambda layout: None
) -> None:
    """Starts the stack, a line for each part as it gets there."""
    local_only("up", instead="docker compose up --wait")
    layout, configured = here()
    started = time.monotonic()
    console.print(f"Starting the stack in {layout.home_path}")

    def say(part: str, news: str) -> None:
        mark = "[green]✓[/green]" if news == "ready" else " "
        console.print(f" {mark} {in_seconds(time.monotonic() - started):>8}  {part}: {news}")

    Stack(layout, configured).up(say, ports, backend, choose=choose)
    chosen = layout.ports()
    console.print(
        f"The stack is up. Airflow {chosen.public_url('airflow')}  MLflow {chosen.public_url('mlflow')} "
        f" gateway {chosen.public_url('gateway')}  (credentials: `./slipway status`)"
    )


def down() -> None:
    """Stops every process of the home."""
    local_only("down", instead="docker compose down")
    layout, configured = here()
    count = Stack(layout, configured).down()
    console.print(f"Stopped {count} processes of {layout.home_path}." if count else "Nothing was running.")
