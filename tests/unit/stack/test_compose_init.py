"""What `slipway init` makes, and that it leaves alone what is there."""

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet, MultiFernet

from pipeline.errors import SpecError
from pipeline.settings import ROOT
from pipeline.stack import compose_init
from pipeline.stack.compose_init import SECRETS


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the example in it."""
    (tmp_path / ".env.example").write_text((ROOT / ".env.example").read_text())
    return tmp_path


def initialise(checkout: Path) -> list[str]:
    return compose_init.initialise(checkout, socket=checkout / ".env.example")


def contents(checkout: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (checkout / "secrets").iterdir()}


def test_every_secret_is_made_in_a_folder_of_the_owners_alone(checkout: Path) -> None:
    """Containers run as other users and get each file as it is, so the files are open and the folder is not."""
    initialise(checkout)
    folder = checkout / "secrets"
    assert sorted(contents(checkout)) == sorted(secret.name for secret in SECRETS)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_no_secret_is_like_another_or_breaks_a_url(checkout: Path) -> None:
    """Passwords stand in database URLs and shell quotes."""
    initialise(checkout)
    made = contents(checkout)
    assert len(set(made.values())) == len(made)
    assert all(
        set(text) <= set(compose_init.base64.urlsafe_b64encode(bytes(range(256))).decode() + "-_=")
        for text in made.values()
    )


def test_the_settings_are_the_examples_with_this_machines_docker_group(checkout: Path) -> None:
    """Nothing else differs from the documented file."""
    initialise(checkout)
    example = (checkout / ".env.example").read_text().splitlines()
    made = (checkout / ".env").read_text().splitlines()
    socket = checkout / ".env.example"
    own = {f"SLIPWAY_DOCKER_GID={socket.stat().st_gid}", f"SLIPWAY_DOCKER_SOCKET={socket}"}
    assert {line for line in made if line not in example} <= own <= set(made)


def test_secrets_are_made_and_replaced_where_compose_looks_for_them(checkout: Path) -> None:
    """The settings name another folder."""
    (checkout / ".env").write_text("SLIPWAY_SECRETS_FOLDER=./elsewhere\n")
    initialise(checkout)
    path = checkout / "elsewhere" / "postgres_password"
    before = path.read_text()
    said = compose_init.rotate(checkout, "postgres_password")
    assert path.read_text() != before
    assert f"set-password.sh < {path}" in "\n".join(said)
    assert not (checkout / "secrets").exists()


def test_what_is_there_stays(checkout: Path) -> None:
    """A second run makes nothing, and one after a loss only what was lost."""
    initialise(checkout)
    (checkout / ".env").write_text("MINE=1\n")
    (checkout / "secrets" / "s3_access_key").unlink()
    before = contents(checkout)
    said = initialise(checkout)
    assert (checkout / ".env").read_text() == "MINE=1\n"
    assert contents(checkout) == before | {"s3_access_key": contents(checkout)["s3_access_key"]}
    assert [line for line in said if "s3_access_key" in line]
    assert "already" in initialise(checkout)[0]


def test_a_machine_without_a_docker_engine_is_told_so(checkout: Path) -> None:
    """Before anything is made with a wrong group in it."""
    with pytest.raises(SpecError, match="start the Docker engine"):
        compose_init.initialise(checkout, socket=checkout / "nothing")


OURS = [secret for secret in SECRETS if secret.kind != "given"]


@pytest.mark.parametrize("secret", OURS, ids=lambda secret: secret.name)
def test_rotating_replaces_one_secret_and_names_the_services(checkout: Path, secret: compose_init.Secret) -> None:
    """The others stay."""
    initialise(checkout)
    before = contents(checkout)
    said = "\n".join(compose_init.rotate(checkout, secret.name))
    after = contents(checkout)
    assert {name for name in after if after[name] != before[name]} == {secret.name}
    assert all(service in said for service in secret.restart)


def test_what_somebody_else_gives_is_not_made_anew(checkout: Path) -> None:
    """The message says where to write it, and what to start again."""
    initialise(checkout)
    (checkout / "secrets" / "hf_token").write_text("hf_of_the_team")
    with pytest.raises(SpecError, match=r"write what you were given into .*hf_token.*--force-recreate jobs"):
        compose_init.rotate(checkout, "hf_token")
    assert contents(checkout)["hf_token"] == "hf_of_the_team"


def test_a_new_fernet_key_still_reads_what_the_old_one_wrote(checkout: Path) -> None:
    """Also when it is repeated before everything was encrypted anew."""
    initialise(checkout)
    path = checkout / "secrets" / "airflow_fernet_key"
    written = Fernet(path.read_text()).encrypt(b"a connection")
    compose_init.rotate(checkout, "airflow_fernet_key")
    compose_init.rotate(checkout, "airflow_fernet_key")
    keys = [Fernet(key) for key in path.read_text().split(",")]
    assert MultiFernet(keys).decrypt(written) == b"a connection"
    assert len(keys) == 3


def test_an_unknown_secret_is_refused_with_those_there_are(checkout: Path) -> None:
    """And one that was never made, with the way to make it."""
    with pytest.raises(SpecError, match=r"'api_key'.*gateway_api_key"):
        compose_init.rotate(checkout, "api_key")
    with pytest.raises(SpecError, match=r"run `./slipway init`"):
        compose_init.rotate(checkout, "gateway_api_key")


def test_it_runs_before_anything_is_installed() -> None:
    """With the standard library alone."""
    command = [sys.executable, "-S", "-m", "pipeline.stack.compose_init", "--help"]
    assert "--rotate" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
