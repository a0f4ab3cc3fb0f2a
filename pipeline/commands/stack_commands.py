"""`slipway up` and `slipway down`."""

import time

from pipeline.commands.output import console, here, in_seconds, local_only
from pipeline.stack.bring_up import Stack


def up(ports: dict[str, int], backend: str | None = None) -> None:
    """Starts the stack, a line for each part as it gets there."""
    local_only("up", instead="docker compose up --wait")
    layout, configured = here()
    started = time.monotonic()
    console.print(f"Starting the stack in {layout.home_path}")

    def say(part: str, news: str) -> None:
        mark = "[green]✓[/green]" if news == "ready" else " "
        console.print(f" {mark} {in_seconds(time.monotonic() - started):>8}  {part}: {news}")

    Stack(layout, configured).up(say, ports, backend)
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
