"""`slipway promote` and `slipway rollback`."""

import getpass
import time

from pipeline.commands import release
from pipeline.commands.output import console, here
from pipeline.errors import SlipwayError
from pipeline.fleet.views import read_fleet
from pipeline.stack import mlflow_part
from pipeline.stack.layout import Layout

BY_HAND = "by hand"
"""Why, where a person gives no reason."""


def promote(name: str, version: str, *, wait: bool, reason: str = BY_HAND) -> None:
    """Sets the alias `champion`; the rollout DAG does the rest. For the present champion it looks whether that serves.

    Raises:
        SpecError: there is no such version.
        DataError: Slipway did not register it, or its registration is damaged.
        SlipwayError: its rollout failed.
    """
    from pipeline.registry.models import Registry
    from pipeline.registry.promotion import promote_by_hand

    layout, _ = here()
    api = release.connect(layout)
    began = time.time()
    registry = Registry(mlflow_part.tracking_uri(layout), layout.home_path)
    done = promote_by_hand(registry, name=name, version=version, promoted_by=getpass.getuser(), reason=reason)
    before = f"after version {done.champion_before}" if done.champion_before else "the first one"
    console.print(f"{name} version {version} is the champion{f' now, {before}' if done.changed else ' already'}.")
    if done.changed and wait:
        release.follow_rollout(layout, api, (name, version), since=began)
    if not done.changed:
        release.roll_out_again(layout, api, (name, version), wait=wait)
    if not wait:
        return
    _check_served(layout, name, version)
    console.print(f"{name} version {version} serves.")


def _check_served(layout: Layout, name: str, version: str) -> None:
    serving = read_fleet(layout.home_path)[name].serving
    if serving is None or serving.version != version:
        served = f"version {serving.version} serves" if serving else "nothing serves"
        raise SlipwayError(f"{name} version {version} was not rolled out, {served}: see `./slipway logs shift`")


def rollback(name: str, *, reason: str = BY_HAND) -> None:
    """Goes back to the version before, and says whether that has taken effect."""
    from pipeline.fleet import operations

    layout, _ = here()
    began = time.time()
    done = operations.rollback(layout, name, reason=reason)
    console.print(f"{name} version {done.version} is the champion again: {done.reason}", soft_wrap=True)
    if not done.immediate:
        release.follow_rollout(layout, release.connect(layout), (name, done.version), since=began)
        _check_served(layout, name, done.version)
