"""What the container images are called: one for each environment, the tag says which release and for which processor.

Standard library only: set-up builds the images with it before anything is installed.
"""

from typing import TYPE_CHECKING

from pipeline import __version__

if TYPE_CHECKING:
    from pipeline.settings import Settings

ENVIRONMENTS = ("control", "model", "serve")
VARIANTS = ("cpu", "cuda")


def default_tag(variant: str = "cpu") -> str:
    """`0.1.0-cpu`. Never `latest`: a name says what is behind it."""
    return f"{__version__}-{variant}"


def tagged(environment: str, tag: str) -> str:
    return f"slipway/{environment}:{tag}"


def image_name(environment: str, settings: "Settings") -> str:
    """The image in which the programs of one of the three environments run."""
    return tagged(environment, settings.image_tag)
