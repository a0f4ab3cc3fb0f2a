"""`slipway rollout pause` and `slipway rollout resume`."""

import getpass

from pipeline.commands.output import console, here
from pipeline.fleet import operations
from pipeline.fleet.files import FleetFiles


def pause(name: str, reason: str) -> None:
    """Holds the rollout that runs.

    Raises:
        SpecError: there is nothing to hold.
    """
    layout, _ = here()
    rollout = operations.pause(layout, name, by=getpass.getuser(), reason=reason)
    model = FleetFiles(layout.home_path).get(name)
    weight = model.weights.get(model.canary.deployment, 0) if model.canary else 0
    console.print(
        f"The rollout of {name} version {rollout.version} is paused with {weight} % of the traffic."
        f" `slipway rollout resume {name}` lets it go on.",
        soft_wrap=True,
    )


def resume(name: str, reason: str) -> None:
    """Lets it go on.

    Raises:
        SpecError: nothing is paused.
    """
    layout, _ = here()
    rollout = operations.resume(layout, name, by=getpass.getuser(), reason=reason)
    console.print(f"The rollout of {name} version {rollout.version} goes on.", soft_wrap=True)
