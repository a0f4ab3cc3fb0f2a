"""What a rollout reads of the gateway's access log."""

import json
from pathlib import Path

from pipeline.fleet.analysis.access_log import AccessLog

LINE = {
    "model": "tiny",
    "code": 200,
    "generation": "2",
    "client": "client",
    "duration_us": 5000,
    "first_byte_us": 2000,
    "content_type": "text/event-stream; charset=utf-8",
}


def write(path: Path, *lines: dict[str, object]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps({**LINE, **line}) + "\n" for line in lines)


def test_the_access_log_is_read_from_now_on_and_without_probes(tmp_path: Path) -> None:
    """Each line once; a line that is still being written is left for later."""
    path = tmp_path / "access.jsonl"
    write(path, {"duration_us": 1000})
    log = AccessLog.from_now(path, "tiny", without="probe")
    write(path, {}, {"client": "probe"}, {"model": "other"}, {"code": 500}, {"generation": None})
    with path.open("a") as file:
        file.write(json.dumps(LINE)[:20])
    log.read()
    log.read()
    assert log.durations_s == {"2": [0.005]}
    assert log.num_requests == {"2": 2}
    with path.open("a") as file:
        file.write(json.dumps(LINE)[20:] + "\n")
    log.read()
    assert log.durations_s == {"2": [0.005, 0.005]}


def test_first_bytes_are_those_of_streams_alone(tmp_path: Path) -> None:
    """An answer in one piece has its first byte when all of it is there."""
    path = tmp_path / "access.jsonl"
    log = AccessLog.from_now(path, "tiny", without="probe")
    write(path, {}, {"content_type": "application/json"}, {"content_type": None})
    log.read()
    assert log.first_bytes_s == {"2": [0.002]}


def test_a_line_of_a_broken_stream_has_no_duration_and_harms_nothing(tmp_path: Path) -> None:
    """Envoy writes null for moments that never came."""
    path = tmp_path / "access.jsonl"
    log = AccessLog.from_now(path, "tiny", without="probe")
    nothing = dict.fromkeys(LINE)
    write(path, {"duration_us": None}, {"first_byte_us": None}, nothing, {"model": "tiny", "code": 0})
    log.read()
    assert log.durations_s == {"2": [0.005]}
    assert log.first_bytes_s == {"2": [0.002]}


def test_a_new_log_is_read_from_its_beginning_after_the_rest_of_the_one_before(tmp_path: Path) -> None:
    """A large log is put aside, and a line may have come to it since the last look."""
    path = tmp_path / "access.jsonl"
    write(path, {}, {}, {})
    log = AccessLog.from_now(path, "tiny", without="probe")
    write(path, {"duration_us": 1000})
    path.replace(tmp_path / "access.1.jsonl")
    log.read()
    assert log.num_requests == {}
    write(path, {"duration_us": 2000})
    log.read()
    log.read()
    assert log.durations_s == {"2": [0.001, 0.002]}


def test_a_log_that_was_replaced_twice_since_is_read_from_its_beginning(tmp_path: Path) -> None:
    """What is gone is gone, and the one before is not what was being read."""
    path = tmp_path / "access.jsonl"
    write(path, {})
    log = AccessLog.from_now(path, "tiny", without="probe")
    (tmp_path / "kept").hardlink_to(path)  # else a file system may give its inode again
    for _ in range(2):
        path.replace(tmp_path / "access.1.jsonl")
        write(path, {})
    log.read()
    assert log.num_requests == {"2": 1}


def test_a_log_that_does_not_exist_yet_is_empty(tmp_path: Path) -> None:
    """The gateway may not have answered anybody."""
    log = AccessLog.from_now(tmp_path / "none", "tiny", without="probe")
    log.read()
    assert log.durations_s == {}


def test_a_line_that_a_killed_gateway_left_half_is_passed_over(tmp_path: Path) -> None:
    """The next gateway goes on behind it, in the same line."""
    path = tmp_path / "access.jsonl"
    log = AccessLog.from_now(path, "tiny", without="probe")
    path.write_text(json.dumps(LINE)[:20])
    write(path, {}, {"duration_us": 1000})
    log.read()
    assert log.durations_s == {"2": [0.001]}
