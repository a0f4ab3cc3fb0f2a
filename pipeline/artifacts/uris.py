"""Local paths and file:// URIs, in both directions (RFC 8089: special characters are percent-encoded)."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import SpecError


def local_path(uri: str) -> Path | None:
    """The path behind a plain absolute path or a file:// URI; None for another scheme.

    Raises:
        SpecError: a relative path, or a file:// URI that names a host.
    """
    if "://" not in uri:
        if not uri.startswith("/"):
            raise SpecError(f"{uri!r} is a relative path; expected an absolute one, file:///… or s3://bucket/name")
        return Path(uri)
    parts = urlsplit(uri)
    if parts.scheme != "file":
        return None
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or parts.query or parts.fragment:
        raise SpecError(f"{uri!r} is no local file; expected file:///absolute/path (write # as %23 and ? as %3F)")
    return Path(unquote(parts.path))


def file_uri(path: Path) -> str:
    return path.absolute().as_uri()
