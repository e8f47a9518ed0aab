"""The images in a request's body: files of a form, one raw image, or JSON with base64."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from sctune.deploy.incoming import bytes_of_text, error_line, shown
from sctune.errors import DataError
from sctune.serve.limits import Limits, RequestError

JSON_KEY = "images"
FORM, JSON, RAW = "multipart/form-data", "application/json", "application/octet-stream"
ACCEPTED = f"send {FORM} with files, {JSON} with {JSON_KEY} as base64, or one image as {RAW} or image/*"
_MORE = 16
"""Commas and brackets that a document may have beside those of its list of images."""
_NAME = 200
"""Letters of a file's name that come back in the answer; it is used for nothing else."""


@dataclass(frozen=True)
class Upload:
    """name: for the answer only; content: the bytes of one image file; error: one line, where there are none."""

    name: str
    content: bytes
    error: str | None = None


async def find_uploads(headers: Headers, body: bytes, limits: Limits) -> list[Upload]:
    """The images in a body, at least one. Raises RequestError 400, 413, 415 or 422."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == FORM:
        found = await _of_form(headers, body, limits)
    elif kind == JSON:
        # large documents take long, and others wait for the event loop
        found = await asyncio.to_thread(_of_json, body, limits)
    elif kind == RAW or kind.startswith("image/"):
        found = [Upload("body", body)] if body else []
    else:
        raise RequestError(415, f"content type {shown(kind)[:100] or 'not given'}: {ACCEPTED}")
    if not found:
        raise RequestError(400, f"no image in the request; {ACCEPTED}")
    return found


class _Parser(MultiPartParser):
    # the body is in memory, within its limit: nothing goes to a temporary file
    spool_max_size = 2**62


async def _of_form(headers: Headers, body: bytes, limits: Limits) -> list[Upload]:
    async def stream() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), 2**16):
            yield body[start : start + 2**16]
            await asyncio.sleep(0)
        yield b""

    try:
        form = await _Parser(headers, stream(), max_files=limits.max_images, max_fields=0).parse()
    except MultiPartException as problem:
        if "Too many files" in problem.message:
            raise too_many(limits) from None
        text = shown(problem.message)[:_NAME].rstrip(".")
        raise RequestError(400, f"the form cannot be read: {text}; send files only") from None
    except (ValueError, LookupError) as problem:  # a charset that is none, a header that is no text
        raise RequestError(400, f"the form cannot be read: {shown(str(problem))[:_NAME]}") from None
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    return [Upload(_plain(file.filename or f"files[{at}]"), await file.read()) for at, file in enumerate(files)]


def _of_json(body: bytes, limits: Limits) -> list[Upload]:
    wanted = f'write {{"{JSON_KEY}": [BASE64, ...]}}'
    # base64 has no commas and brackets, and `data:` before it one comma: a small body could unfold to gigabytes before
    # its images are counted
    if body.count(b",") > 2 * limits.max_images + _MORE:
        raise too_many(limits)
    if body.count(b"{") + body.count(b"[") > _MORE:
        raise RequestError(422, f"the document is nested; {wanted}")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, f"the body is no JSON; {wanted}") from None
    if not isinstance(document, dict) or not isinstance(document.get(JSON_KEY), list):
        raise RequestError(422, f"the document has no list {JSON_KEY!r}; {wanted}")
    unknown = sorted(set(document) - {JSON_KEY})
    if unknown:
        raise RequestError(422, f"unknown key {shown(unknown[0])[:_NAME]!r}; {wanted}")
    if len(document[JSON_KEY]) > limits.max_images:
        raise too_many(limits)
    return [_of_text(f"{JSON_KEY}[{number}]", text) for number, text in enumerate(document[JSON_KEY])]


def _of_text(name: str, text: Any) -> Upload:
    try:
        if not isinstance(text, str):
            raise DataError("no text; send an image file's bytes as base64")
        return Upload(name, bytes_of_text(text))
    except DataError as problem:
        return Upload(name, b"", error_line(name, str(problem)))


def _plain(name: str) -> str:
    """A file's name without what steers a terminal or turns the direction of writing around."""
    letters = (letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name[:_NAME])
    return "".join(letters)[:_NAME]


def too_many(limits: Limits) -> RequestError:
    return RequestError(413, f"more than {limits.max_images} images in one request; send several requests")
