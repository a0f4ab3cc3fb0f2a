"""The S3 store against a real server (Ceph's RADOS gateway)."""

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline import artifacts, cli
from pipeline.artifacts import s3
from pipeline.artifacts.digests import file_digest, file_entries, folder_digest
from pipeline.artifacts.s3 import PART_BYTES, S3Store
from pipeline.contracts.base import step_key
from pipeline.contracts.recipe import BaseModelSource
from pipeline.contracts.specs import STEPS, PlanResult, PlanSpec
from pipeline.errors import IntegrityError, SpecError, TransientError
from pipeline.inputs import pin_base_model, pin_file
from pipeline.settings import ROOT
from pipeline.training.checkpoint_index import (
    Index,
    Part,
    commit,
    read_index,
    remove_old,
    step_name,
    steps,
    upload_named,
)
from tests.artifact_samples import KEY, manifest_of, write_files
from tests.integration.publish_once import held_after
from tests.integration.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw, credentials, running_radosgw

pytestmark = [pytest.mark.integration, pytest.mark.needs("radosgw")]

PARTS = 6
BIG_BYTES = PARTS * PART_BYTES - 12_345
FIRST_PARTS = 2
"""Of a big file, sent before something happens."""


@pytest.fixture(scope="module")
def server() -> Iterator[Radosgw]:
    """One server for this module. Its folder's name is short, since the daemons' sockets lie in it."""
    with running_radosgw(Path(tempfile.mkdtemp(prefix="rgw-"))) as running:
        yield running


@pytest.fixture
def store(server: Radosgw, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """A store with a prefix in a new bucket."""
    use_credentials(monkeypatch, server)
    return S3Store(f"s3://{server.make_bucket()}/team/store")


def use_credentials(monkeypatch: pytest.MonkeyPatch, server: Radosgw, secret: str = SECRET_KEY) -> None:
    """Points this process at the server, as a user would."""
    monkeypatch.setenv("SLIPWAY_S3_ENDPOINT", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    s3.open_client.cache_clear()


@contextmanager
def publisher(server: Radosgw, uri: str, folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is about to publish `folder`; killed at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.integration.publish_once", uri, str(folder), *options],
        cwd=ROOT,
        env=credentials(SLIPWAY_S3_ENDPOINT=server.endpoint),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def unfinished_uploads(server: Radosgw, store: S3Store) -> list[dict[str, str]]:
    found: list[dict[str, str]] = server.client().list_multipart_uploads(Bucket=store.bucket).get("Uploads", [])
    return found


def arrived_parts(server: Radosgw, store: S3Store) -> set[int]:
    """The numbers of the parts that the server has of the bucket's only unfinished upload."""
    [upload] = unfinished_uploads(server, store)
    parts = server.client().list_parts(Bucket=store.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    return {part["PartNumber"] for part in parts.get("Parts", [])}


def test_a_published_artifact_is_fetched_with_every_byte(store: S3Store, tmp_path: Path) -> None:
    """Small, empty, nested and multipart files arrive, and a second fetch reads the cache."""
    folder = write_files(tmp_path / "in", {"a.txt": 10, "empty": 0, "deep/er/b.bin": 2 * PART_BYTES + 7, "sp ace+ü": 5})
    uri = store.uri_of(f"validate/{KEY}")

    published = artifacts.publish(uri, folder, manifest_of(folder))
    fetched = artifacts.fetch(published.ref(uri), tmp_path / "cache")

    assert file_entries(fetched) == file_entries(folder)
    assert artifacts.fetch(published.ref(uri), tmp_path / "cache") == fetched
    assert artifacts.find_manifest(store.uri_of(f"finetune/{KEY}")) is None


def test_of_racing_manifests_exactly_one_is_created(store: S3Store) -> None:
    """Eight writers, ten times: one of them wins and all later readers see its bytes."""
    for attempt in range(10):
        name = f"validate/{attempt}/manifest.json"
        with ThreadPoolExecutor(8) as pool:
            created = list(pool.map(lambda n, name=name: store.create(name, str(n).encode()), range(8)))
        assert created.count(True) == 1
        assert store.read(name) == str(created.index(True)).encode()


def test_the_loser_of_a_race_gets_the_winners_manifest_and_leaves_no_files(store: S3Store, tmp_path: Path) -> None:
    """Two attempts with other content under one key: the second one's files go."""
    uri = store.uri_of(f"validate/{KEY}")
    first, second = write_files(tmp_path / "1", {"a": 10}), write_files(tmp_path / "2", {"a": 10}, seed=b"other")

    winner = artifacts.publish(uri, first, manifest_of(first))

    assert artifacts.publish(uri, second, manifest_of(second)) == winner
    assert store.names(f"validate/{KEY}") == sorted(
        [f"validate/{KEY}/manifest.json", f"validate/{KEY}/{winner.root}/a"]
    )


def test_of_racing_gangs_one_completes_a_checkpoint(store: S3Store, tmp_path: Path) -> None:
    """Each has parts of its own, one of them large enough for several uploads; what the others wrote is no checkpoint,
    and goes with the next."""
    folder, size = f"checkpoints/{KEY}", PART_BYTES + 1

    def save(gang: int, step: int) -> Index:
        scratch = tmp_path / f"gang-{gang}-{step}"
        scratch.mkdir()
        (scratch / "rank-0000.safetensors").write_bytes(bytes([gang]) * size)
        entry = upload_named(store, scratch / "rank-0000.safetensors", step_name(folder, step), stem="rank-0000")
        part = Part(file=entry, stage=0, slice=0, pieces=())
        fields = {"adam_step": step, "tensor": 1, "pipeline": 1, "world_size": 1}
        index = Index(step=step, **fields, loss_scale={}, history=[{"loss": float(gang)}], parts=(part,))
        commit(store, folder, index, scratch)
        return index

    with ThreadPoolExecutor(3) as pool:
        written = list(pool.map(lambda gang: save(gang, 10), range(3)))
    found = read_index(store, folder, 10)
    assert found in written
    (part,) = found.parts
    store.download(f"{step_name(folder, 10)}/{part.file.path}", tmp_path / "part")
    assert file_digest(tmp_path / "part") == part.file.sha256
    later = save(7, 20)
    remove_old(store, folder, keep=1)
    assert steps(store, folder) == [20]
    assert read_index(store, folder, 20) == later
    assert {name.split("/")[2] for name in store.names(folder)} == {"step-00000020"}


def test_a_bucket_whose_server_ignores_conditional_creates_is_refused(server: Radosgw, store: S3Store) -> None:
    """This server overwrites silently in a bucket with versions, which would let two results mix."""
    server.client().put_bucket_versioning(Bucket=store.bucket, VersioningConfiguration={"Status": "Enabled"})

    with pytest.raises(SpecError, match="without versioning"):
        store.create("validate/x/manifest.json", b"{}")


def test_a_killed_upload_continues_with_the_parts_that_arrived(
    server: Radosgw, store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 in the middle: the next attempt sends only the missing parts, and no upload is left open."""
    folder = write_files(tmp_path / "in", {"model.safetensors": BIG_BYTES})
    uri = store.uri_of(f"validate/{KEY}")
    with publisher(server, uri, folder, str(FIRST_PARTS)) as process:
        go(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
    assert artifacts.find_manifest(uri) is None
    arrived = arrived_parts(server, store)
    assert len(arrived) == FIRST_PARTS
    sent: list[int] = []
    upload_part = store.client.upload_part

    def counted(**request: object) -> object:
        sent.append(int(str(request["PartNumber"])))
        return upload_part(**request)

    monkeypatch.setattr(s3.open_client(server.endpoint), "upload_part", counted)

    published = artifacts.publish(uri, folder, manifest_of(folder))

    assert sorted(sent) == sorted(set(range(1, PARTS + 1)) - arrived)
    assert unfinished_uploads(server, store) == []
    assert file_entries(artifacts.fetch(published.ref(uri), tmp_path / "cache")) == published.files


def test_two_uploaders_of_one_big_file_both_succeed(server: Radosgw, store: S3Store, tmp_path: Path) -> None:
    """Whoever completes first, the other sees that the object is there."""
    folder = write_files(tmp_path / "in", {"model.safetensors": BIG_BYTES})
    uri = store.uri_of(f"validate/{KEY}")
    with publisher(server, uri, folder) as one, publisher(server, uri, folder) as other:
        go(one)
        go(other)
        said = {process.communicate(timeout=300)[0] for process in (one, other)}

    assert said == {f"{manifest_of(folder).digest}\n"}
    assert unfinished_uploads(server, store) == []


def test_an_upload_survives_a_server_that_is_away_for_seconds(
    server: Radosgw, store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway is killed in the middle of an upload and comes back three seconds later."""
    folder = write_files(tmp_path / "in", {"model.safetensors": BIG_BYTES})
    uri = store.uri_of(f"validate/{KEY}")
    manifest = manifest_of(folder)
    arrived, killed = threading.Event(), threading.Event()
    held = held_after(store.client.upload_part, FIRST_PARTS, arrived=arrived.set, hold=killed.wait)
    monkeypatch.setattr(store.client, "upload_part", held)
    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(artifacts.publish, uri, folder, manifest)
        try:
            assert arrived.wait(timeout=120)
            server.stop_gateway()
        finally:
            killed.set()
        timer = threading.Timer(3, server.start_gateway)
        timer.start()
        try:
            published = publishing.result(timeout=300)
        finally:
            timer.join()

    assert file_entries(artifacts.fetch(published.ref(uri), tmp_path / "cache")) == manifest.files


def test_a_server_that_stays_away_is_a_transient_fault(server: Radosgw, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its retries the store says what it asked, of whom, and what to do."""
    use_credentials(monkeypatch, server)
    monkeypatch.setenv("SLIPWAY_S3_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    monkeypatch.setattr(s3, "PATIENCE_S", 0.0)

    with pytest.raises(TransientError, match=r"cannot read s3://bucket/x at http://127.0.0.1:9: .*start the server"):
        S3Store("s3://bucket").read("x")


def test_an_endpoint_that_is_no_address_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an example of one."""
    monkeypatch.setenv("SLIPWAY_S3_ENDPOINT", "localhost:9000")

    with pytest.raises(SpecError, match="should look like https://host:9000"):
        S3Store("s3://bucket")


def test_a_wrong_secret_fails_at_once(server: Radosgw, store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retrying cannot help, so it is an error of the settings, and the secret is not in it."""
    use_credentials(monkeypatch, server, secret="not-the-secret")

    with pytest.raises(SpecError, match="AWS_SECRET_ACCESS_KEY") as caught:
        S3Store(store.uri).read("x")

    assert "not-the-secret" not in str(caught.value)


def test_a_missing_bucket_fails_at_once(server: Radosgw, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the advice to create it."""
    use_credentials(monkeypatch, server)

    with pytest.raises(SpecError, match="create it"):
        S3Store("s3://no-such-bucket-here").create("x", b"")


def test_an_altered_byte_is_an_integrity_error(server: Radosgw, store: S3Store, tmp_path: Path) -> None:
    """Somebody overwrites an object behind the manifest's back."""
    folder = write_files(tmp_path / "in", {"a": 100, "b": 100})
    uri = store.uri_of(f"validate/{KEY}")
    published = artifacts.publish(uri, folder, manifest_of(folder))
    key = f"{store.prefix}validate/{KEY}/{published.root}/b"
    server.client().put_object(Bucket=store.bucket, Key=key, Body=b"x" * 100)

    with pytest.raises(IntegrityError, match="b was altered"):
        artifacts.fetch(published.ref(uri), tmp_path / "cache")


def test_a_deleted_object_is_an_integrity_error(server: Radosgw, store: S3Store, tmp_path: Path) -> None:
    """The message names it."""
    folder = write_files(tmp_path / "in", {"a": 100})
    uri = store.uri_of(f"validate/{KEY}")
    published = artifacts.publish(uri, folder, manifest_of(folder))
    store.remove(f"validate/{KEY}/{published.root}/a")

    with pytest.raises(IntegrityError, match=f"{published.root}/a is missing"):
        artifacts.fetch(published.ref(uri), tmp_path / "cache")


def test_a_damaged_cached_copy_is_fetched_again(store: S3Store, tmp_path: Path) -> None:
    """The store's bytes are what counts."""
    folder = write_files(tmp_path / "in", {"a": 100})
    uri = store.uri_of(f"validate/{KEY}")
    published = artifacts.publish(uri, folder, manifest_of(folder))
    cached = artifacts.fetch(published.ref(uri), tmp_path / "cache")
    (cached / "a").write_bytes(b"damaged")

    assert file_entries(artifacts.fetch(published.ref(uri), tmp_path / "cache")) == published.files


def test_rows_and_a_base_model_in_a_bucket_are_pinned_and_fetched(store: S3Store, tmp_path: Path) -> None:
    """What plan pins, a later step reads on a machine with an empty cache."""
    folder = write_files(tmp_path / "in", {"rows.jsonl": 50, "model/config.json": 5, "model/w.safetensors": 70})
    for entry in file_entries(folder):
        store.upload(folder / entry.path, entry.path, entry)

    rows = pin_file(store.uri_of("rows.jsonl"), "dataset.uri", tmp_path / "c1", suffixes=(".jsonl",))
    _, model = pin_base_model(BaseModelSource(uri=store.uri_of("model")), tmp_path / "c1")

    assert model is not None
    assert model.digest == folder_digest(folder / "model")
    for cache in ("c1", "c2"):
        fetched = artifacts.fetch_file(rows, tmp_path / cache)
        assert fetched.read_bytes() == (folder / "rows.jsonl").read_bytes()
        assert folder_digest(artifacts.fetch_folder(model, tmp_path / cache)) == model.digest
    with pytest.raises(SpecError, match=r"dataset.uri: s3://.*gone.jsonl does not exist"):
        pin_file(store.uri_of("gone.jsonl"), "dataset.uri", tmp_path / "c1", suffixes=(".jsonl",))


def test_a_step_runs_on_a_bucket_and_is_reused(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole entry point, with generated rows that a machine with an empty cache can fetch."""
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "home"))
    generated = {"kind": "support-intents", "train_rows": 200, "eval_rows": 60}
    recipe = {"name": "demo", "dataset": {"generate": generated}, "base_model": {"init": {}}}
    spec = PlanSpec(recipe=recipe, request_id="test")
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    uri = store.uri_of(f"plan/{step_key('plan', STEPS['plan'].version, spec)}")

    codes = [cli.main(["plan", "--spec", str(tmp_path / "spec.json"), "--out", uri]) for _ in range(2)]

    assert codes == [0, 0]
    assert f"reused {uri}" in capsys.readouterr().out
    planned = PlanResult.model_validate(artifacts.read_manifest(uri).result)
    assert len(artifacts.fetch_file(planned.train, tmp_path / "cache").read_text().splitlines()) == 200
