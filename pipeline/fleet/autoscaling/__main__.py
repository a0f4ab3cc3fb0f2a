"""Runs until it is ended: `python -m pipeline.fleet.autoscaling`. One a home: a second waits for the first to end."""

import math
import sys
import time
from functools import partial
from pathlib import Path

from pipeline import artifacts, json_lines, settings
from pipeline.contracts.base import ModelRef
from pipeline.errors import SlipwayError, SpecError
from pipeline.fleet import alive
from pipeline.fleet.autoscaling.scaling import ACTOR
from pipeline.fleet.autoscaling.watching import Autoscaler
from pipeline.fleet.hosts import replica_host
from pipeline.fleet.parts import Fleet
from pipeline.fleet.replicas import Replicas
from pipeline.registry.locks import file_lock
from pipeline.registry.models import Registry
from pipeline.settings import Settings
from pipeline.signing.bundles import verified_folder
from pipeline.signing.keys import trusted
from pipeline.stack.layout import Layout

LOOK_EVERY_S = 2.0


def fleet_of(configured: Settings) -> Fleet:
    """The home's fleet, with the registry that MLFLOW_TRACKING_URI names.

    Raises:
        SpecError: it names none.
    """
    if configured.tracking_uri is None:
        raise SpecError("the autoscaler needs MLflow, but MLFLOW_TRACKING_URI is not set; set it to its address")
    layout = Layout(configured.home_path)

    def fetch(model: ModelRef) -> Path:
        return artifacts.fetch(model.artifact, configured.cache_path) / model.path

    return Fleet(
        layout=layout,
        registry=Registry(configured.tracking_uri, layout.home_path),
        replicas=Replicas(replica_host(configured, layout), waiting=partial(alive.touch, layout.fleet_path, ACTOR)),
        fetch_bundle=lambda version: verified_folder(version, trusted(layout), fetch),
        fetch_predictions=lambda version: None,
        say=lambda message: print(json_lines.line(ACTOR, message), flush=True),
    )


def main() -> int:
    try:
        fleet = fleet_of(settings.load())
    except SlipwayError as error:
        print(f"error {error.exit_code} {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    with file_lock(fleet.layout.fleet_path / "autoscaler" / "lock", wait_s=math.inf):
        autoscaler = Autoscaler(fleet)
        fleet.say("watching")
        while True:
            try:
                autoscaler.look()
            except SlipwayError as error:
                fleet.say(f"will try again: {error}")
            time.sleep(LOOK_EVERY_S)


if __name__ == "__main__":
    sys.exit(main())
