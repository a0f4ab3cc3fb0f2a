"""What `up` refuses before it starts anything, and how it reports."""

import os
import socket
from pathlib import Path

import pytest

from pipeline.errors import SpecError
from pipeline.stack.bring_up import check_ports, log_tail
from pipeline.stack.layout import Layout


def test_a_taken_port_is_refused_with_its_owner_and_the_way_out(tmp_path: Path) -> None:
    """Number, part, process and what to do."""
    layout = Layout(tmp_path)
    ports = layout.choose_ports()
    with (
        socket.create_server(("127.0.0.1", ports.mlflow)),
        pytest.raises(SpecError, match=rf"port {ports.mlflow} \(mlflow\).*process {os.getpid()} .*--port"),
    ):
        check_ports(ports, own_pids=set())


def test_a_port_that_the_stack_itself_holds_is_fine(tmp_path: Path) -> None:
    """So `up` twice is harmless."""
    ports = Layout(tmp_path).choose_ports()
    with socket.create_server(("127.0.0.1", ports.airflow)):
        check_ports(ports, own_pids={os.getpid()})


def test_the_end_of_a_log_is_shown_with_its_path(tmp_path: Path) -> None:
    """The last lines are where the reason stands."""
    log = tmp_path / "part.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    assert str(log) in log_tail(log)
    assert "line 99" in log_tail(log)
    assert "line 5\n" not in log_tail(log)
