"""A store in an S3 bucket (AWS, Ceph's RADOS gateway, MinIO, …), through boto3.

Credentials come from where boto3 looks for them: the environment, ~/.aws, or the machine's role. What every server
understands is used and no more: Content-MD5 on each request that carries data, part ETags to see which parts of an
interrupted upload are good, and `If-None-Match: *` on a single PUT for the one write that must not race.
"""

import functools
import hashlib
import time
from base64 import b64encode
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from pipeline import settings
from pipeline.artifacts.stores import Store
from pipeline.contracts.manifest import FileEntry
from pipeline.errors import IntegrityError, SpecError, TransientError

PART_BYTES = 16 << 20
MAX_PARTS = 10_000
PARALLEL_PARTS = 4
ATTEMPTS = 10
"""Of one request that the server answers badly. boto3's pauses between them add up to about a dozen seconds."""
PATIENCE_S = 90.0
"""How long nobody may answer at the server's address: a server that is started anew takes a while."""
AWAY_POLL_S = 2.0
AWAY = (EndpointConnectionError, ConnectTimeoutError, ConnectionClosedError)

PROBE = ".slipway-conditional-create"
"""An object that shows whether the server honours `If-None-Match`."""

REFUSED = {
    "AccessDenied": "the credentials may not do this; check the key's rights on the bucket",
    "AllAccessDisabled": "the account is blocked",
    "InvalidAccessKeyId": "the server does not know this key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret is wrong; check AWS_SECRET_ACCESS_KEY",
    "NoSuchBucket": "the bucket does not exist; create it, or correct SLIPWAY_STORE",
    "InvalidBucketName": "the bucket's name is not allowed; correct SLIPWAY_STORE",
    "PermanentRedirect": "the bucket is in another region; set AWS_DEFAULT_REGION",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "403": "the credentials may not do this; check the key, the secret and the key's rights on the bucket",
}
"""S3's error codes that no retry heals, and what to do."""


class S3Store(Store):
    """Objects `{prefix}/{name}` of a bucket without versions."""

    def __init__(self, uri: str) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").rstrip("/").partition("/")
        if not bucket:
            raise SpecError(f"the store {uri!r} names no bucket; expected s3://bucket/prefix")
        self.uri = uri.rstrip("/")
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.client = open_client(settings.load().s3_endpoint)

    def read(self, name: str) -> bytes | None:
        with self._asking("read", name):
            try:
                data: bytes = self.client.get_object(**self._object(name))["Body"].read()
            except self.client.exceptions.NoSuchKey:
                return None
        return data

    def create(self, name: str, data: bytes) -> bool:
        with self._asking("create", name):
            self._demand_conditional_create()
            return self._put_new(name, data)

    def upload(self, source: Path, name: str, entry: FileEntry) -> None:
        with self._asking("upload", name):
            if self._has(name, entry):
                return
            if entry.size_bytes <= PART_BYTES:
                self._put(source, name, entry)
            else:
                self._upload_parts(source, name, entry)

    def download(self, name: str, target: Path) -> None:
        config = TransferConfig(max_concurrency=PARALLEL_PARTS, multipart_chunksize=PART_BYTES, num_download_attempts=8)
        with self._asking("download", name):
            try:
                self.client.download_file(self.bucket, self.prefix + name, str(target), Config=config)
            except ClientError as error:
                if _code(error) in ("404", "NoSuchKey"):
                    raise IntegrityError(f"{self.uri_of(name)} is missing") from error
                raise

    def names(self, folder: str) -> list[str]:
        with self._asking("list", folder):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=f"{self.prefix}{folder}/"
            )
            return sorted(item["Key"].removeprefix(self.prefix) for page in pages for item in page.get("Contents", ()))

    def remove(self, name: str) -> None:
        with self._asking("delete", name):
            self.client.delete_object(**self._object(name))

    def local_path(self, name: str) -> Path | None:
        return None

    def _object(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + name}

    def _has(self, name: str, entry: FileEntry) -> bool:
        """Whether the object is there with these bytes, by the digest that its uploader noted beside it."""
        try:
            head = self.client.head_object(**self._object(name))
        except ClientError as error:
            if _code(error) in ("404", "NoSuchKey"):
                return False
            raise
        return bool(head["ContentLength"] == entry.size_bytes and head["Metadata"].get("sha256") == entry.sha256)

    def _put(self, source: Path, name: str, entry: FileEntry) -> None:
        data = source.read_bytes()
        _check_source(source, hashlib.sha256(data).hexdigest(), entry)
        self.client.put_object(
            **self._object(name), Body=data, ContentMD5=_md5(data)[1], Metadata={"sha256": entry.sha256}
        )

    def _put_new(self, name: str, data: bytes) -> bool:
        try:
            self.client.put_object(**self._object(name), Body=data, ContentMD5=_md5(data)[1], IfNoneMatch="*")
        except ClientError as error:
            if _code(error) in ("PreconditionFailed", "412"):
                return False
            raise
        return True

    def _demand_conditional_create(self) -> None:
        """Creates the probe twice at most: a server that lets the second one pass would let racing manifests pass."""
        if self._put_new(PROBE, b"") and self._put_new(PROBE, b""):
            raise SpecError(
                f"{self.uri}: the server ignores `If-None-Match: *`, so two jobs could overwrite each other's result;"
                " use a bucket without versioning, or a server that supports conditional writes"
            )

    def _upload_parts(self, source: Path, name: str, entry: FileEntry) -> None:
        """A multipart upload, which continues what an interrupted one has already sent.

        Another process may complete the same object meanwhile; it has the same bytes, so that is success too.
        """
        unfinished = self._unfinished(name)
        upload_id = unfinished[-1] if unfinished else self._begin(name, entry)
        try:
            parts = self._send_parts(source, name, entry, upload_id=upload_id)
            self.client.complete_multipart_upload(
                **self._object(name), UploadId=upload_id, MultipartUpload={"Parts": parts}
            )
        except ClientError as error:
            if _code(error) != "NoSuchUpload" or not self._has(name, entry):
                raise
        for leftover in self._unfinished(name):
            self._abort(name, leftover)

    def _begin(self, name: str, entry: FileEntry) -> str:
        begun = self.client.create_multipart_upload(**self._object(name), Metadata={"sha256": entry.sha256})
        return str(begun["UploadId"])

    def _abort(self, name: str, upload_id: str) -> None:
        try:
            self.client.abort_multipart_upload(**self._object(name), UploadId=upload_id)
        except self.client.exceptions.NoSuchUpload:
            return  # its owner was quicker

    def _unfinished(self, name: str) -> list[str]:
        """The ids of multipart uploads of this very object that were begun and not completed, oldest first."""
        pages = self.client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self.bucket, Prefix=self.prefix + name
        )
        uploads = [item for page in pages for item in page.get("Uploads", ()) if item["Key"] == self.prefix + name]
        return [item["UploadId"] for item in sorted(uploads, key=lambda item: item["Initiated"])]

    def _send_parts(self, source: Path, name: str, entry: FileEntry, *, upload_id: str) -> list[dict[str, Any]]:
        """Sends the parts that the server lacks, a few at a time, and hashes the whole file on the way."""
        pages = self.client.get_paginator("list_parts").paginate(**self._object(name), UploadId=upload_id)
        there = {part["PartNumber"]: part["ETag"] for page in pages for part in page.get("Parts", ())}
        digest = hashlib.sha256()

        def send(number: int, data: bytes) -> dict[str, Any]:
            etag, md5 = _md5(data)
            if there.get(number) != f'"{etag}"':
                sent = self.client.upload_part(
                    **self._object(name), UploadId=upload_id, PartNumber=number, Body=data, ContentMD5=md5
                )
                return {"PartNumber": number, "ETag": sent["ETag"]}
            return {"PartNumber": number, "ETag": there[number]}

        parts: list[dict[str, Any]] = []
        under_way: deque[Future[dict[str, Any]]] = deque()
        with source.open("rb") as file, ThreadPoolExecutor(PARALLEL_PARTS) as pool:
            for number, data in _parts(file, _part_bytes(entry.size_bytes)):
                under_way.append(pool.submit(send, number, data))
                digest.update(data)
                if len(under_way) == PARALLEL_PARTS:
                    parts.append(under_way.popleft().result())
            parts.extend(sending.result() for sending in under_way)
        _check_source(source, digest.hexdigest(), entry)
        return parts

    @contextmanager
    def _asking(self, verb: str, name: str) -> Iterator[None]:
        """Turns boto3's errors into ours, with what was asked of whom."""
        what = f"cannot {verb} {self.uri_of(name)} at {self.client.meta.endpoint_url}"
        try:
            yield
        except ClientError as error:
            code = _code(error)
            if code in REFUSED:
                raise SpecError(f"{what}: {code}: {REFUSED[code]}") from error
            raise TransientError(f"{what}: {error}; see to the server, then run the step again") from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise SpecError(
                f"{what}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write ~/.aws/credentials"
            ) from error
        except ParamValidationError as error:
            raise SpecError(f"{what}: {error}") from error
        except (BotoCoreError, boto3.exceptions.Boto3Error, ConnectionError) as error:
            raise TransientError(
                f"{what}: {error}; start the server or correct SLIPWAY_S3_ENDPOINT, then run the step again"
            ) from error


@functools.lru_cache
def open_client(endpoint: str | None) -> Any:
    """boto3's client; safe to share between threads, and slow to make."""
    config = Config(
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=2 * PARALLEL_PARTS,
        # Newer checksum headers are unknown to many servers; Content-MD5 is known to all.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    try:
        client = boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)
    except (ValueError, BotoCoreError) as error:
        raise SpecError(f"cannot use S3: {error}; SLIPWAY_S3_ENDPOINT should look like https://host:9000") from error
    client.meta.events.register("needs-retry.s3", _wait_for_the_server)
    return client


def _wait_for_the_server(*, caught_exception: Exception | None, request_dict: Any, **_: Any) -> float | None:
    """Asked by boto3 after each failure of a request; counts once its own retries, which are over soon, are used up.

    Returns:
        Seconds until the next try; None for no other.
    """
    if not isinstance(caught_exception, AWAY):
        return None
    since = request_dict["context"].setdefault("slipway_away_since", time.monotonic())
    return AWAY_POLL_S if time.monotonic() - since < PATIENCE_S else None


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _md5(data: bytes) -> tuple[str, str]:
    """As an ETag has it, and as Content-MD5 has it. For transport only: sha256 is what a manifest trusts."""
    digest = hashlib.md5(data, usedforsecurity=False)
    return digest.hexdigest(), b64encode(digest.digest()).decode()


def _part_bytes(size_bytes: int) -> int:
    """The same for the same size, so that an interrupted upload's parts fit; larger where there would be too many."""
    mebibyte = 1 << 20
    return max(PART_BYTES, -(-size_bytes // MAX_PARTS // mebibyte) * mebibyte)


def _parts(file: BinaryIO, part_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The file's parts, numbered from 1."""
    return enumerate(iter(functools.partial(file.read, part_bytes), b""), start=1)


def _check_source(source: Path, actual: str, entry: FileEntry) -> None:
    if actual != entry.sha256:
        raise IntegrityError(f"{source} changed while it was published: {actual}, expected {entry.sha256}")
