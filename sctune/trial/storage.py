"""Where checkpoints are kept: a folder or an object store by URI, and its troubles in one line."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from pyarrow import fs

from sctune.errors import CheckpointError, StorageError

_TIMEOUT_S = 3.0
_ATTEMPTS = 2
"""A call to an object store that hangs is over after some seconds: a driver that is being stopped has ten."""

_OPTIONS = ("region", "scheme", "endpoint_override")


def open_storage(storage: str) -> tuple[fs.FileSystem, str]:
    """File system and root path of a storage URI; raises CheckpointError for one that cannot be used.

    StorageError where the region of a bucket has to be asked for and nobody answers.
    """
    try:
        system, root = _open_s3(storage) if storage.startswith("s3://") else fs.FileSystem.from_uri(storage)
    except OSError as problem:
        raise StorageError(f"the storage {storage} does not answer or refuses: {reason(problem)}") from None
    except ValueError as problem:
        raise CheckpointError(
            f"--storage-path {storage!r} cannot be used ({problem}); give an absolute folder or s3://BUCKET/PATH"
        ) from None
    return system, root.rstrip("/")


def sibling(storage_path: str, name: str) -> str:
    """The place of this name beside a study's checkpoints."""
    place, mark, query = storage_path.partition("?")
    return f"{place.rstrip('/').rpartition('/')[0]}/{name}{mark}{query}"


def with_region(uri: str) -> str:
    """An s3:// URI that says its bucket's region, so that nobody has to ask for it again; others as they are.

    Raises OSError where the bucket does not exist or nobody answers.
    """
    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query))
    if parts.scheme != "s3" or "region" in options or _has_endpoint(options):
        return uri
    options["region"] = fs.resolve_s3_region(parts.netloc)
    return f"s3://{parts.netloc}{parts.path}?{urlencode(options)}"


def _open_s3(uri: str) -> tuple[fs.FileSystem, str]:
    options = dict(parse_qsl(urlsplit(uri).query))
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r}; there are {', '.join(_OPTIONS)}")
    parts = urlsplit(uri)
    if not parts.netloc:
        raise ValueError("it names no bucket")
    system = fs.S3FileSystem(
        **(_endpoint() | dict(parse_qsl(urlsplit(with_region(uri)).query))),
        connect_timeout=_TIMEOUT_S,
        request_timeout=_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    )
    return system, f"{parts.netloc}{unquote(parts.path)}"


def _endpoint() -> dict[str, str]:
    """Options for a store of one's own that the environment names, as AWS's own tools read it."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not url:
        return {}
    parts = urlsplit(url)
    return {"scheme": parts.scheme, "endpoint_override": parts.netloc}


def _has_endpoint(options: dict[str, str]) -> bool:
    """Whether it is a store of one's own, which has no regions to ask for."""
    return "endpoint_override" in options or bool(_endpoint())


@contextmanager
def answering(storage: str) -> Iterator[None]:
    """What goes wrong with the storage inside becomes a StorageError of one line."""
    try:
        yield
    except OSError as problem:
        raise StorageError(
            f"the storage {storage} does not answer or refuses: {reason(problem)}; the same command works when it does"
        ) from None


def reason(problem: Exception) -> str:
    """A file system's own words in one line."""
    return " ".join(str(problem).split())[:300]


def probe(system: fs.FileSystem, folder: str) -> None:
    """Write a small file into the folder and remove it. Raises OSError where that cannot be done."""
    system.create_dir(folder, recursive=True)
    marker = f"{folder}/.sctune-probe-{uuid.uuid4().hex}"
    with system.open_output_stream(marker) as stream:
        stream.write(b"sctune")
    system.delete_file(marker)
