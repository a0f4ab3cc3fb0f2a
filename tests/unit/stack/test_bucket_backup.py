"""An archive of the bucket that is not whole is never taken for one."""

import io
import tarfile
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.stack import bucket_backup

OBJECTS = {"store/a": b"first" * 300, "store/b": b"second" * 300}


class Bucket:
    """As much of an S3 client as a backup uses. The real one is in the tests of docker compose."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = dict(objects)

    def get_paginator(self, _: str) -> "Bucket":
        return self

    def paginate(self, **_: str) -> list[dict[str, Any]]:
        return [{"Contents": [{"Key": key}]} for key in self.objects]

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        body = self.objects[Key]
        return {"ContentLength": len(body), "Metadata": {"sha256": Key}, "Body": io.BytesIO(body)}

    def upload_fileobj(self, file: Any, _bucket: str, key: str, _extra: dict[str, Any]) -> None:
        self.objects[key] = file.read()


@pytest.fixture
def archive() -> bytes:
    saved = io.BytesIO()
    bucket_backup.save(Bucket(OBJECTS), "bucket", saved)
    return saved.getvalue()


def test_what_was_saved_is_loaded(archive: bytes) -> None:
    """Every object, counted."""
    target = Bucket({})
    size = sum(map(len, OBJECTS.values()))
    assert bucket_backup.load(target, "bucket", io.BytesIO(archive)) == (2, size)
    assert target.objects == OBJECTS


def test_an_archive_that_was_cut_between_two_objects_is_refused(archive: bytes) -> None:
    """Where it ends like a whole one."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as whole:
        second = whole.getmembers()[1]
    with pytest.raises(DataError, match="ends after 1 objects without its last entry"):
        bucket_backup.load(Bucket({}), "bucket", io.BytesIO(archive[: second.offset]))


def test_an_archive_that_was_cut_within_an_object_is_refused(archive: bytes) -> None:
    """And anything that is no archive."""
    for data in (archive[:1500], b"no archive"):
        with pytest.raises(DataError, match="is it one of `save`"):
            bucket_backup.load(Bucket({}), "bucket", io.BytesIO(data))
