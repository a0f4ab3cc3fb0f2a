"""`slipway promote` and `slipway rollback`."""

from pipeline.commands import release
from pipeline.commands.output import console, here
from pipeline.errors import SlipwayError
from pipeline.fleet.state import read_fleet
from pipeline.stack import mlflow_part


def promote(name: str, version: str, *, wait: bool) -> None:
    """Sets the alias `champion`; the rollout DAG does the rest.

    Raises:
        SpecError: there is no such version.
        SlipwayError: its rollout failed.
    """
    from pipeline.registry.models import CHAMPION, Registry

    layout, _ = here()
    api = release.connect(layout)
    registry = Registry(mlflow_part.tracking_uri(layout), layout.home_path)
    registry.summary(name, version)
    registry.set_alias(name, CHAMPION, version)
    console.print(f"{name} version {version} is the champion now.")
    if not wait:
        return
    release.follow_rollout(layout, api, name, version)
    serving = read_fleet(layout.home_path)[name].serving
    if serving is None or serving.version != version:
        served = f"version {serving.version} serves" if serving else "nothing serves"
        raise SlipwayError(f"{name} version {version} was not rolled out, {served}: see `./slipway logs shift`")
    console.print(f"{name} version {version} serves.")


def rollback(name: str) -> None:
    """Goes back to the version before, and says whether that has taken effect."""
    from pipeline.fleet import operations

    layout, _ = here()
    api = release.connect(layout)
    done = operations.rollback(layout, name)
    console.print(f"{name} version {done.version} is the champion again: {done.reason}", soft_wrap=True)
    if not done.immediate:
        release.follow_rollout(layout, api, name, done.version)
