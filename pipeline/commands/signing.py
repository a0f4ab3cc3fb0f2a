"""What the commands of `slipway signing` do: keys, whose signatures count here, and signing a version by hand."""

from pathlib import Path

from pipeline import audit
from pipeline.commands.output import console, here, local_only
from pipeline.errors import SpecError
from pipeline.signing import keys, versions
from pipeline.stack.layout import Layout


def init() -> None:
    local_only("signing init", instead="./slipway init")
    layout, _ = here()
    layout.create()
    is_new = not layout.signing_key_path.exists()
    identity = keys.key_id(keys.ensure(layout).public_key())
    if is_new:
        _record(layout, "signing-key-made", identity)
    console.print(f"{keys.short(identity)} signs what is registered; the key is {layout.signing_key_path}")


def show() -> None:
    layout, configured = here()
    public = keys.signing_key(configured).public_key()
    for identity, known in keys.trusted(layout).items():
        signs = "  signs what is registered now" if identity == keys.key_id(public) else ""
        console.print(f"{keys.short(identity)}  trusted since {known.since}{signs}")
    print(keys.public_pem(public), end="")


def rotate() -> None:
    local_only("signing rotate", instead="./slipway init --rotate signing_key")
    layout, configured = here()
    before = keys.short(keys.key_id(keys.signing_key(configured).public_key()))
    identity = keys.key_id(keys.rotate(layout).public_key())
    _record(layout, "signing-key-made", identity)
    after = keys.short(identity)
    console.print(f"{after} signs from now on; {before} stays trusted: `./slipway signing distrust {before}` ends that")


def trust(file: Path) -> None:
    layout, _ = here()
    layout.create()
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read {file}: {error}; expected a public key in PEM") from error
    key = keys.parse_public(text, file)
    _record(layout, "signing-key-trusted", keys.key_id(key))
    console.print(f"{keys.short(keys.trust(layout, key, again=True))} is trusted")


def distrust(key: str) -> None:
    layout, configured = here()
    identity = keys.distrust(configured, key)
    _record(layout, "signing-key-distrusted", identity)
    console.print(f"{keys.short(identity)} is not trusted any more")


def sign(name: str, version: str) -> None:
    layout, configured = here()
    key = versions.sign_version(configured, name, version)
    details = {"key": keys.short(key)}
    audit.record(layout, action="signed", actor=audit.person(), model=name, version=version, details=details)
    console.print(f"{name} version {version} is signed by {keys.short(key)}; `./slipway promote {name} {version}`")


def verify(name: str, version: str) -> None:
    _, configured = here()
    found = versions.verify_version(configured, name, version)
    console.print(
        f"{name} version {version} is good: signed by {keys.short(found.key_id)}, bundle"
        f" {found.version.bundle_digest[:16]}, {found.files} files"
    )


def _record(layout: Layout, action: str, identity: str) -> None:
    audit.record(layout, action=action, actor=audit.person(), details={"key": keys.short(identity)})
