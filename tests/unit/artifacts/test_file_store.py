"""The store in a folder, and publishing to it."""

import errno
import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import artifacts
from pipeline.artifacts.digests import entries_digest, file_entries
from pipeline.artifacts.stores import PARTIAL, FileStore, open_store
from pipeline.artifacts.uris import file_uri, local_path
from pipeline.contracts.base import ArtifactRef
from pipeline.contracts.manifest import FileEntry
from pipeline.errors import DataError, IntegrityError, SpecError, TransientError
from pipeline.settings import ROOT
from tests.artifact_samples import KEY, manifest_of, write_files


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """Of an artifact that does not exist yet."""
    return f"{file_uri(tmp_path / 'store')}/validate/{KEY}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files to publish."""
    return write_files(tmp_path / "staging", {"a.txt": 10, "deep/b.bin": 3_000_000})


def test_a_published_artifact_is_found_and_fetched(uri: str, folder: Path, tmp_path: Path) -> None:
    """And nothing half-written stays behind."""
    assert artifacts.find_manifest(uri) is None

    published = artifacts.publish(uri, folder, manifest_of(folder))

    assert artifacts.find_manifest(uri) == published
    assert file_entries(artifacts.fetch(published.ref(uri), tmp_path / "cache")) == published.files
    assert list((tmp_path / "store" / PARTIAL).iterdir()) == []


def test_of_many_racing_publishers_all_get_one_manifest(uri: str, folder: Path) -> None:
    """Each with its own times; the first one's stand."""
    manifests = [manifest_of(folder, started_at=f"2026-01-{day:02}") for day in range(1, 9)]
    with ThreadPoolExecutor(8) as pool:
        published = list(pool.map(lambda manifest: artifacts.publish(uri, folder, manifest), manifests))

    assert len({manifest.started_at for manifest in published}) == 1


def test_the_files_of_a_beaten_attempt_are_removed(uri: str, folder: Path, tmp_path: Path) -> None:
    """They lie under another root, and no manifest names them."""
    winner = artifacts.publish(uri, folder, manifest_of(folder))
    other = write_files(tmp_path / "other", {"a.txt": 10}, seed=b"other")

    assert artifacts.publish(uri, other, manifest_of(other)) == winner
    assert len(open_store(uri.rsplit("/", 2)[0]).names(f"validate/{KEY}")) == 1 + len(winner.files)


def test_a_leftover_of_the_right_size_but_wrong_bytes_is_replaced(uri: str, folder: Path, tmp_path: Path) -> None:
    """As a power cut can leave it; only its digest tells."""
    manifest = manifest_of(folder)
    leftover = tmp_path / "store" / "validate" / KEY / manifest.root / "deep" / "b.bin"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(bytes(3_000_000))

    published = artifacts.publish(uri, folder, manifest)

    assert artifacts.fetch(published.ref(uri), tmp_path / "cache")


def test_what_a_killed_writer_left_is_swept_and_a_living_ones_is_kept(tmp_path: Path) -> None:
    """The living hold a lock on their temporary file."""
    store = FileStore(tmp_path)
    (tmp_path / PARTIAL).mkdir()
    (tmp_path / PARTIAL / "dead").write_bytes(b"x")
    with store._writing(tmp_path / "living") as (_, temporary):
        store.create("other", b"data")
        assert list((tmp_path / PARTIAL).iterdir()) == [temporary]


PUBLISH_FOREVER = """
import sys, itertools
from pathlib import Path
from pipeline import artifacts
from tests.artifact_samples import manifest_of
store, folder = sys.argv[1], Path(sys.argv[2])
print("ready", flush=True)
for n in itertools.count():
    key = f"{n:064x}"
    artifacts.publish(f"{store}/validate/{key}", folder, manifest_of(folder, key=key))
"""


def test_a_publisher_killed_at_any_moment_leaves_what_the_next_one_finishes(tmp_path: Path) -> None:
    """Ten times kill -9 after a random while: every manifest that is there has all its bytes, the rest is finished."""
    folder = write_files(tmp_path / "staging", {"a": 10, "b": 200_000, "deep/c": 500_000})
    moments = random.Random(7)
    for attempt in range(10):
        store = tmp_path / f"store{attempt}"
        command = [sys.executable, "-c", PUBLISH_FOREVER, file_uri(store), str(folder)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=moments.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
        for key in sorted(path.name for path in (store / "validate").glob("*")):
            uri = f"{file_uri(store)}/validate/{key}"
            published = artifacts.publish(uri, folder, manifest_of(folder, key=key))
            assert artifacts.fetch(published.ref(uri), tmp_path / "cache")
        assert not (store / PARTIAL).exists() or list((store / PARTIAL).iterdir()) == []


@pytest.mark.parametrize("place", ["a.txt", "deep/b.bin"])
def test_an_altered_byte_is_an_integrity_error(place: str, uri: str, folder: Path, tmp_path: Path) -> None:
    """The message names the file."""
    published = artifacts.publish(uri, folder, manifest_of(folder))
    path = tmp_path / "store" / "validate" / KEY / published.root / place
    path.write_bytes(b"?" + path.read_bytes()[1:])

    with pytest.raises(IntegrityError, match=f"{place} was altered"):
        artifacts.fetch(published.ref(uri), tmp_path / "cache")


def test_a_missing_file_is_an_integrity_error(uri: str, folder: Path, tmp_path: Path) -> None:
    """With the advice to run the step again."""
    published = artifacts.publish(uri, folder, manifest_of(folder))
    (tmp_path / "store" / "validate" / KEY / published.root / "a.txt").unlink()

    with pytest.raises(IntegrityError, match=r"a\.txt is missing; delete the artifact and run its step again"):
        artifacts.fetch(published.ref(uri), tmp_path / "cache")


def test_an_altered_manifest_is_an_integrity_error(uri: str, folder: Path, tmp_path: Path) -> None:
    """Its digest covers what a reader builds on."""
    artifacts.publish(uri, folder, manifest_of(folder))
    path = tmp_path / "store" / "validate" / KEY / "manifest.json"
    path.write_text(path.read_text().replace('"rows": 3', '"rows": 4'))

    with pytest.raises(IntegrityError, match="was altered"):
        artifacts.find_manifest(uri)


def test_a_truncated_manifest_is_an_integrity_error(uri: str, folder: Path, tmp_path: Path) -> None:
    """Rather than a crash in the parser."""
    artifacts.publish(uri, folder, manifest_of(folder))
    path = tmp_path / "store" / "validate" / KEY / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(IntegrityError, match="is not a manifest"):
        artifacts.find_manifest(uri)


def test_an_artifact_that_was_copied_to_another_key_is_refused(uri: str, folder: Path, tmp_path: Path) -> None:
    """Otherwise a spec would get the result of another."""
    artifacts.publish(uri, folder, manifest_of(folder))
    other = "cd" * 32
    (tmp_path / "store" / "validate" / KEY).rename(tmp_path / "store" / "validate" / other)

    with pytest.raises(IntegrityError, match="copied or moved"):
        artifacts.find_manifest(uri.replace(KEY, other))


def test_a_reference_with_another_digest_is_refused(uri: str, folder: Path, tmp_path: Path) -> None:
    """The URI alone is not what was promised."""
    artifacts.publish(uri, folder, manifest_of(folder))

    with pytest.raises(IntegrityError, match="expected 0000"):
        artifacts.fetch(ArtifactRef(uri=uri, digest="0" * 64), tmp_path / "cache")


def test_a_file_that_changes_while_it_is_published_is_refused(uri: str, folder: Path) -> None:
    """Its manifest would promise other bytes."""
    manifest = manifest_of(folder)
    (folder / "a.txt").write_bytes(b"0123456789")

    with pytest.raises(IntegrityError, match="changed while it was published"):
        artifacts.publish(uri, folder, manifest)
    assert artifacts.find_manifest(uri) is None


@pytest.mark.parametrize(
    ("number", "expected", "advice"),
    [
        (errno.ENOSPC, TransientError, "free some space"),
        (errno.EIO, TransientError, "see to the folder's disk"),
        (errno.EACCES, SpecError, "must be writable"),
        (errno.EROFS, SpecError, "must be writable"),
        (errno.ENOENT, FileNotFoundError, "No such file"),
    ],
)
def test_a_fault_of_the_disk_says_what_to_do(
    number: int, expected: type[Exception], advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk may pass; a folder without rights will not; the rest is a bug and stays visible as one."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fail)

    with pytest.raises(expected, match=advice):
        FileStore(tmp_path).create("x", b"data")
    assert list((tmp_path / PARTIAL).iterdir()) == []


def test_a_folder_with_a_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    """Its content would silently be left out."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")

    with pytest.raises(DataError, match="link is no file"):
        file_entries(tmp_path)


@pytest.mark.parametrize("uri", ["http://x/y", "s3://", "file://host/x", "relative", "", "file://x"])
def test_a_store_of_an_unknown_kind_is_refused(uri: str) -> None:
    """Rather than guessed at."""
    with pytest.raises(SpecError):
        open_store(uri)


@pytest.mark.parametrize("uri", ["", "x", "file:///", "validate/abc"])
def test_a_uri_that_is_no_artifact_is_refused(uri: str) -> None:
    """With the form that is expected."""
    with pytest.raises(SpecError):
        artifacts.find_manifest(uri)


@given(st.lists(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_every_path_survives_the_way_into_a_uri_and_back(parts: list[str]) -> None:
    """Blanks, per cent signs, hashes and letters of any language."""
    path = Path("/", *(part for part in parts if part not in (".", "..")))

    assert local_path(file_uri(path)) == path


entries = st.builds(
    FileEntry,
    path=st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,2}", fullmatch=True),
    size_bytes=st.integers(0, 1 << 40),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
)


@given(st.lists(entries, min_size=1, max_size=5, unique_by=lambda entry: entry.path), st.randoms())
def test_the_order_of_files_does_not_change_a_digest_and_their_content_does(
    files: list[FileEntry], order: random.Random
) -> None:
    """So that every file system gives the same digest."""
    shuffled = list(files)
    order.shuffle(shuffled)
    larger = [files[0].model_copy(update={"size_bytes": files[0].size_bytes + 1}), *files[1:]]

    assert entries_digest(tuple(shuffled)) == entries_digest(tuple(files))
    assert entries_digest(tuple(larger)) != entries_digest(tuple(files))
