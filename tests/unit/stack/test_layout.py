"""The state folder: ports, credentials, and where sockets go."""

import json
import socket
from pathlib import Path

import pytest

from pipeline.errors import SpecError
from pipeline.stack.layout import PARTS, Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "home")
    layout.create()
    return layout


def test_the_home_is_the_owners_alone(layout: Layout) -> None:
    """Nobody else may enter the folder that holds the credentials."""
    assert layout.home_path.stat().st_mode & 0o777 == 0o700


def test_credentials_are_made_once_and_readable_by_the_owner_alone(layout: Layout) -> None:
    """A second start keeps them."""
    first = layout.ensure_credentials()
    assert layout.ensure_credentials() == first
    assert layout.credentials_path.stat().st_mode & 0o777 == 0o600


def test_two_homes_have_different_credentials(tmp_path: Path) -> None:
    """They are random, not derived."""
    homes = [Layout(tmp_path / name) for name in ("one", "other")]
    for home in homes:
        home.create()
    assert homes[0].ensure_credentials().api_key != homes[1].ensure_credentials().api_key


def test_ports_are_chosen_once_and_kept(layout: Layout) -> None:
    """Bookmarks stay good from one start to the next."""
    ports = layout.choose_ports()
    assert layout.choose_ports() == ports == layout.ports()
    assert len(set(ports.numbers().values())) == len(PARTS)


def test_a_part_on_another_host_is_found_there(layout: Layout) -> None:
    """Programs by its host's name, people at the address that is published; the rest stays on loopback."""
    ports = layout.choose_ports()
    found = ports.model_copy(update={"hosts": {"mlflow": "mlflow"}, "public": {"mlflow": "http://localhost:5000"}})
    assert found.url("mlflow") == f"http://mlflow:{ports.mlflow}"
    assert found.public_url("mlflow") == "http://localhost:5000"
    assert found.url("gateway") == found.public_url("gateway") == f"http://127.0.0.1:{ports.gateway}"


def test_a_wanted_port_leaves_the_hosts_alone(layout: Layout) -> None:
    """They were written by whoever set the stack up."""
    layout.stack_path.write_text(layout.choose_ports().model_copy(update={"hosts": {"mlflow": "m"}}).model_dump_json())
    assert layout.choose_ports({"airflow": 18080}).hosts == {"mlflow": "m"}


def test_a_wanted_port_is_taken_and_kept(layout: Layout) -> None:
    """`--port` need not be repeated."""
    layout.choose_ports()
    layout.choose_ports({"airflow": 18080})
    assert layout.choose_ports().airflow == 18080


def test_the_address_that_people_use_goes_with_its_port(layout: Layout) -> None:
    """One that is published at another port stays."""
    ports = layout.choose_ports({"gateway": 18080})
    public = {"gateway": "https://127.0.0.1:18080", "mlflow": "http://localhost:5000"}
    layout.stack_path.write_text(ports.model_copy(update={"public": public}).model_dump_json())
    found = layout.choose_ports({"gateway": 18443, "mlflow": 18081})
    assert found.public == {"gateway": "https://127.0.0.1:18443", "mlflow": "http://localhost:5000"}


def test_a_port_for_an_unknown_part_is_refused(layout: Layout) -> None:
    """The message names the parts that there are."""
    with pytest.raises(SpecError, match=r"'airflw'.*airflow"):
        layout.choose_ports({"airflw": 18080})


def test_one_port_for_two_parts_is_refused(layout: Layout) -> None:
    """It could not work."""
    with pytest.raises(SpecError, match="twice"):
        layout.choose_ports({"airflow": 18080, "mlflow": 18080})


def test_a_damaged_file_is_named(layout: Layout) -> None:
    """The message says which and what to do."""
    layout.stack_path.write_text(json.dumps({"airflow": "many"}))
    with pytest.raises(SpecError, match=r"stack\.json is damaged"):
        layout.ports()


def test_a_home_that_was_never_started_says_so(layout: Layout) -> None:
    """Instead of a missing file's name alone."""
    with pytest.raises(SpecError, match=r"slipway up"):
        layout.ports()


def test_a_socket_of_a_deep_home_fits_the_kernels_limit(tmp_path: Path) -> None:
    """Sockets move to a short folder of this user's own."""
    layout = Layout(tmp_path / ("deep" * 30))
    layout.create()
    path = layout.runtime_path / ".s.PGSQL.5432"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    path.unlink()
    assert layout.runtime_path.stat().st_mode & 0o777 == 0o700
    layout.runtime_path.rmdir()
