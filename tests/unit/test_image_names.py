"""What the container images are called."""

from pipeline import __version__, settings
from pipeline.contracts.specs import STEPS
from pipeline.images import ENVIRONMENTS, default_tag, image_name


def test_an_image_is_named_after_its_environment_and_the_tag() -> None:
    """The tag is a setting, so that a cluster with GPUs takes the other variant."""
    assert image_name("model", settings.load({})) == f"slipway/model:{__version__}-cpu"
    assert image_name("serve", settings.load({"SLIPWAY_IMAGE_TAG": default_tag("cuda")})).endswith("-cuda")


def test_every_step_has_an_image() -> None:
    """Of the environment that the table of steps names."""
    assert {step.environment for step in STEPS.values()} <= set(ENVIRONMENTS)
