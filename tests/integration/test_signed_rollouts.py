"""From a registration's signature to the replicas: a real MLflow, gateway and supervisord, stand-in replicas."""

import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fleet_rig import ROLLOUT, Rig

from pipeline import artifacts
from pipeline.artifacts.digests import file_entries
from pipeline.commands.app import main
from pipeline.registry.models import SIGNATURE_TAG, Registry
from pipeline.signing import keys
from pipeline.signing.bundles import Registered, sign, verified_folder
from tests.integration.finished_release import FinishedRelease
from tests.integration.mlflow_server import MlflowServer

pytestmark = pytest.mark.integration

GOOD = [True] * 20
FIELDS = {"rollout": {**ROLLOUT, "replicas": 1, "steps": [100]}}


class SignedFleet(Rig):
    """A fleet whose versions are registered in MLflow, and checked as the step `rollout` checks them."""

    def __init__(self, release: FinishedRelease, uri: str) -> None:
        super().__init__(release.settings.home_path, quiet=True)
        self.release = release
        self.name = release.recipe.name
        self.models = self.fleet.registry = Registry(uri, self.home_path)
        cache = release.settings.cache_path
        self.fleet.fetch_bundle = lambda version: verified_folder(
            version, keys.trusted(self.layout), lambda model: artifacts.fetch(model.artifact, cache) / model.path
        )

    def register(self, seed: int) -> str:
        """Registers a release of its own; the version's number."""
        spec = self.release.build(GOOD, seed=seed)
        assert self.release.register(spec) == 0
        return self.models.versions(self.name)[-1].version

    def promote(self, version: str) -> dict[str, str]:
        """Moves the alias and follows; phase to what became of it."""
        self.models.set_alias(self.name, "champion", version)
        return {result.phase: result.reason for result in self.follow(f"to-{version}", self.name)}

    def bundle(self, version: str) -> Path:
        found = self.models.get(self.name, version).bundle
        return artifacts.fetch(found.artifact, self.release.settings.cache_path) / found.path

    def slipway(self, *arguments: str) -> tuple[int, str]:
        """The command line, in this process, which has imported MLflow already: exit code, and all that it said."""
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said), pytest.MonkeyPatch.context() as patched:
            patched.setattr(sys, "argv", ["slipway", *arguments])
            try:
                return main(), said.getvalue()
            except SystemExit as end:
                return int(end.code or 0), said.getvalue()


@pytest.fixture
def fleet(finished_release: FinishedRelease, mlflow_server: MlflowServer) -> Iterator[SignedFleet]:
    release = FinishedRelease(finished_release.settings.home_path, {"name": finished_release.recipe.name, **FIELDS})
    rig = SignedFleet(release, mlflow_server.uri)
    rig.up()
    yield rig
    rig.supervisor.stop()


def served(fleet: SignedFleet) -> tuple[str | None, str | None, set[str]]:
    """Champion, serving, and the versions that have replicas."""
    names = [state.name for state in fleet.supervisor.states() if state.name.startswith("replica-")]
    aliases = [fleet.models.alias(fleet.name, alias) for alias in ("champion", "serving")]
    return aliases[0], aliases[1], {name.removeprefix(f"replica-{fleet.name}-v").partition("-")[0] for name in names}


def _unsigned(fleet: SignedFleet, version: str) -> None:
    fleet.models.delete_tag(fleet.name, version, SIGNATURE_TAG)


def _signed_by_a_stranger(fleet: SignedFleet, version: str) -> None:
    found = fleet.models.get(fleet.name, version)
    what = Registered(model=fleet.name, version=version, bundle_digest=found.bundle_digest)
    text = sign(what, file_entries(fleet.bundle(version)), Ed25519PrivateKey.generate())
    fleet.models.tag(fleet.name, version, SIGNATURE_TAG, text)


def _signed_for_another_version(fleet: SignedFleet, version: str) -> None:
    fleet.models.tag(fleet.name, version, SIGNATURE_TAG, fleet.models.summary(fleet.name, "1").tags[SIGNATURE_TAG])


def _altered(fleet: SignedFleet, version: str) -> None:
    weights = fleet.bundle(version) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3] + b'9"}')


REFUSED = [
    (_unsigned, "is not signed, so nobody vouches for its bundle"),
    (_signed_by_a_stranger, "no trusted key made the signature"),
    (_signed_for_another_version, "the signature is good, but of something else"),
    (_altered, "model.safetensors was altered"),
]


def test_only_a_signed_and_untouched_version_is_ever_loaded(fleet: SignedFleet) -> None:
    """Others fail before a replica of theirs exists; the champion is put back, and the version says why."""
    assert fleet.register(seed=1) == "1"
    assert fleet.promote("1")["promote"] == "version 1 is served"
    for number, (harm, reason) in enumerate(REFUSED, start=2):
        version = fleet.register(seed=number)
        harm(fleet, version)
        assert reason in fleet.promote(version)["start_canary"]
        assert served(fleet) == ("1", "1", {"1"})
        tags = fleet.models.summary(fleet.name, version).tags
        assert tags["slipway.rollout"] == "failed"
        assert reason in tags["slipway.rollout_reason"]
    assert fleet.ask(fleet.name).headers["x-slipway-version"] == "1"


def test_a_version_from_before_signatures_is_served_once_somebody_vouches_for_it(fleet: SignedFleet) -> None:
    """By `slipway signing sign`; a key that is rotated and then distrusted takes its versions along."""
    version = fleet.register(seed=1)
    _unsigned(fleet, version)
    code, said = fleet.slipway("signing", "verify", fleet.name, version)
    assert (code, f"slipway signing sign {fleet.name} {version}" in said) == (65, True), said
    assert fleet.slipway("signing", "sign", fleet.name, version)[0] == 0
    assert fleet.promote(version)["promote"] == f"version {version} is served"

    old = keys.short(keys.key_id(keys.ensure(fleet.layout).public_key()))
    assert fleet.slipway("signing", "rotate")[0] == 0
    code, said = fleet.slipway("signing", "verify", fleet.name, version)
    assert (code, f"signed by {old}" in said) == (0, True), said
    assert fleet.slipway("signing", "distrust", old)[0] == 0
    assert fleet.slipway("signing", "verify", fleet.name, version)[0] == 65
    assert fleet.slipway("signing", "sign", fleet.name, version)[0] == 0
    assert fleet.slipway("signing", "verify", fleet.name, version)[0] == 0


def test_another_place_accepts_versions_by_the_public_key_alone(fleet: SignedFleet, tmp_path: Path) -> None:
    """It holds no private key; without the public one it refuses."""
    version = fleet.register(seed=1)
    public = tmp_path / "signer.pem"
    _, shown = fleet.slipway("signing", "show")
    public.write_text(shown[shown.index("-----BEGIN") :])
    shutil.rmtree(fleet.layout.signing_path)
    assert "trusted are none" in fleet.slipway("signing", "verify", fleet.name, version)[1]
    assert fleet.slipway("signing", "trust", str(public))[0] == 0
    assert fleet.slipway("signing", "verify", fleet.name, version)[0] == 0
    code, said = fleet.slipway("signing", "sign", fleet.name, version)
    assert (code, "there is no key to sign bundles with" in said) == (64, True), said
