"""Images from outside: out of base64 text, decoded, scored; and one line about each that cannot be.

`sctune predict`, `/predict` and MLflow's `predict` answer with the same line for the same fault; what stands in front
is the path, the file's name or the row.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from unicodedata import category

from sctune.data.places import UNPRINTABLE
from sctune.deploy.calibration import Prepared
from sctune.deploy.model import Model
from sctune.errors import DataError, NonFiniteError

_NAMELESS = "the image"
"""What decoding calls an image of which it has the bytes only."""
_DATA_URL = re.compile(r"\s*data:[^,]{0,200};\s*base64\s*,", re.IGNORECASE)


def prepared(model: Model, content: bytes, name: str) -> Prepared | str:
    """One image file's bytes as the model takes them, or one line that begins with its name."""
    try:
        return model.prepare(content)
    except DataError as problem:
        return error_line(name, str(problem))
    except MemoryError:
        return f"{shown(name)} takes more memory than there is"


def scores(model: Model, images: Sequence[Prepared], names: Sequence[str]) -> list[float | str]:
    """The score of each image, or one line that begins with its name: a score that is no number costs no other."""
    try:
        return list(model.score([image.pixels for image in images]).tolist())
    except NonFiniteError:
        return [_one_score(model, image, name) for image, name in zip(images, names, strict=True)]


def error_line(name: str, problem: str) -> str:
    """What is wrong with one image, on one line that can be printed."""
    text = " ".join(problem.split())
    for ending in (": ", " cannot be decoded: "):
        if text.startswith(_NAMELESS + ending):
            return shown(name + text.removeprefix(_NAMELESS))
    return shown(f"{name}: {text}")


def bytes_of_text(text: str) -> bytes:
    """What base64 holds, also with line breaks, url-safe letters, without padding, or as a `data:` address.

    Raises DataError for what is no image.
    """
    found = _DATA_URL.match(text)
    letters = "".join(text[found.end() if found else 0 :].split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise DataError("the text is not base64; send an image file's bytes as base64") from None


def shown(path: str) -> str:
    """A path as a table or a page can hold it: what is no UTF-8, and control characters, by their codes."""
    if path.isprintable():
        return path
    return "".join(
        letter.encode("unicode_escape", "surrogatepass").decode() if category(letter) in UNPRINTABLE else letter
        for letter in path
    )


def _one_score(model: Model, image: Prepared, name: str) -> float | str:
    try:
        return float(model.score([image.pixels])[0])
    except NonFiniteError:
        return error_line(name, "its score is no finite number")
