"""The commands of `slipway signing`; their work is in `signing`, which is imported when it is asked for."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Who vouches for the bundles that replicas load: keys, and signatures of versions. See docs/signing.md.",
)

Model = Annotated[str, typer.Argument(help="The registered model.")]
Version = Annotated[str, typer.Argument(help="Its version, as MLflow numbers it.")]
PublicKey = Annotated[
    Path, typer.Argument(metavar="FILE", help="A public key in PEM, as `slipway signing show` prints it.")
]


@app.command()
def init() -> None:
    """Make this home's key, unless it has one, and trust it. `slipway up` does the same.

    Example: `slipway signing init`
    """
    from pipeline.commands import signing as command

    command.init()


@app.command()
def show() -> None:
    """Which key signs, and whose signatures are accepted; prints the signer's public key for other places.

    Example: `slipway signing show`
    """
    from pipeline.commands import signing as command

    command.show()


@app.command()
def rotate() -> None:
    """Sign with a new key from now on. What the old one signed stays good until `slipway signing distrust`.

    Example: `slipway signing rotate`
    """
    from pipeline.commands import signing as command

    command.rotate()


@app.command()
def trust(file: PublicKey) -> None:
    """Accept what another place's key signed, such as a CI's.

    Example: `slipway signing trust ci.pem`
    """
    from pipeline.commands import signing as command

    command.trust(file)


@app.command()
def distrust(
    key: Annotated[str, typer.Argument(help="The beginning of its id, as `slipway signing show` prints it.")],
) -> None:
    """Accept no more what a key signed: versions that it signed are refused at their next rollout.

    What is being served goes on. Versions that are still good can be signed anew: `slipway signing sign`.

    Example: `slipway signing distrust 3fa9c1`
    """
    from pipeline.commands import signing as command

    command.distrust(key)


@app.command()
def sign(name: Model, version: Version) -> None:
    """Vouch for a version that was registered without a signature, or by a key that is no longer trusted.

    Its bundle is fetched, its digest compared with the registered one, and its files looked at; then the digest is
    signed. Nothing can tell whether the version is what you mean: look at it in MLflow first.

    Example: `slipway signing sign support-intents 3`
    """
    from pipeline.commands import signing as command

    command.sign(name, version)


@app.command()
def verify(name: Model, version: Version) -> None:
    """Check a version as a rollout does: its signature, every byte of its bundle, and what kinds of files it holds.

    Exit code 65: no replica may load it; the message says why.

    Example: `slipway signing verify support-intents 3`
    """
    from pipeline.commands import signing as command

    command.verify(name, version)
