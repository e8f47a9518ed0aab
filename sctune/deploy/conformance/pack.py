"""A conformance pack: raw files, and what the model makes of each, for whoever reads images outside of sctune.

pack.json       what the model is, how it reads images, and for each file the score, label and tolerances
raw/NAME        the files, made by sctune from numbers
expected/NAME.npy  uint8 [S, S, 3], as the model takes the file
hints.npz       what known wrong pipelines make of it, at some positions
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctune import __version__
from sctune.deploy.calibration import Prepared
from sctune.deploy.conformance.raw import Raw, raw_files
from sctune.deploy.conformance.wrong import wrong_readings
from sctune.deploy.incoming import prepared
from sctune.deploy.model import Model, score_digest
from sctune.deploy.parity import TOLERANCE, allowance
from sctune.deploy.reading import preprocessing
from sctune.errors import ConfigError
from sctune.files import whole_folder

FORMAT_VERSION = 1
MANIFEST, RAW, EXPECTED, HINTS = "pack.json", "raw", "expected", "hints.npz"
PIXELS, LOSSY_PIXELS = 1, 2
"""Largest difference of a pixel: of rounding, and where decoders of JPEG may differ besides."""
_POSITIONS = 1024
_CHUNK = 16

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Wrong:
    """A known wrong pipeline: the score that it gives."""

    name: str
    score: float


@dataclass(frozen=True)
class Case:
    """A file of the pack. refused: why the model takes it not; then score, label and pixels are none.

    pixel_tolerance, score_tolerance: largest differences that are no fault, the second where the pixels are the same;
    rounding: what pixels that are off by the first change of the score.
    """

    file: str
    about: str
    sha256: str
    width: int | None
    height: int | None
    score: float | None
    label: str | None
    refused: str | None
    notes: tuple[str, ...]
    pixel_tolerance: int
    score_tolerance: float
    rounding: float
    wrong: tuple[Wrong, ...]


@dataclass(frozen=True)
class Pack:
    """A pack on disk. about: its manifest without the files."""

    folder: Path
    about: Mapping[str, Any]
    cases: tuple[Case, ...]

    @property
    def threshold(self) -> float | None:
        value = self.about["threshold"]
        return None if value is None else float(value)

    def raw(self, case: Case) -> Path:
        return self.folder / RAW / case.file

    def pixels(self, case: Case) -> Pixels:
        return _array(self.folder / EXPECTED / f"{case.file}.npy")


def write_pack(model: Model, folder: Path) -> Pack:
    """Make the pack in a new folder, whole or not at all; raises ConfigError where the folder holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--pack {folder}: it exists and is not empty; give a new folder")
    try:
        with whole_folder(folder) as staged:
            _fill(model, staged)
    except OSError as problem:
        raise ConfigError(f"cannot write {folder}: {problem.strerror or problem}; give another --pack") from None
    return read_pack(folder)


def read_pack(folder: Path) -> Pack:
    """Raises ConfigError for a folder that is no pack, is damaged, or is of a newer sctune."""
    try:
        about = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if about["format_version"] != FORMAT_VERSION:
            raise ConfigError(
                f"{folder / MANIFEST} has format_version {about['format_version']}, this sctune reads "
                f"{FORMAT_VERSION}; update it"
            )
        cases = tuple(_case(one) for one in about.pop("files"))
        pack = Pack(folder, about, cases)
        for case in cases:
            if sha256(pack.raw(case).read_bytes()).hexdigest() != case.sha256:
                raise ConfigError(f"{pack.raw(case)} is not the file that the pack was made with; make the pack anew")
        return pack
    except FileNotFoundError as problem:
        raise ConfigError(
            f"{folder} holds no whole pack ({problem.filename} is not there); make one with --pack"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ConfigError(f"cannot read the pack in {folder}: {problem}; make it anew") from None


def read_hints(pack: Pack) -> tuple[NDArray[np.int64], dict[str, Pixels]]:
    """Positions [P] in an image of S * S pixels, and for each file uint8 [W, P, 3], W as in its `wrong`."""
    try:
        with np.load(pack.folder / HINTS, allow_pickle=False) as content:
            found = {name: content[name] for name in content.files}
        return found.pop("positions"), found
    except (OSError, ValueError, KeyError) as problem:
        raise ConfigError(f"cannot read {pack.folder / HINTS}: {problem}; make the pack anew") from None


def _fill(model: Model, folder: Path) -> None:
    (folder / RAW).mkdir()
    (folder / EXPECTED).mkdir()
    size = model.config.data.image_size
    positions = np.sort(np.random.default_rng(7).choice(size * size, min(_POSITIONS, size * size), replace=False))
    hints: dict[str, NDArray[Any]] = {"positions": positions}
    cases = []
    for raw in raw_files(size):
        (folder / RAW / raw.name).write_bytes(raw.content)
        image = prepared(model, raw.content, raw.name)
        if isinstance(image, str):
            cases.append(_refused(raw, image))
            continue
        np.save(folder / EXPECTED / f"{raw.name}.npy", image.pixels, allow_pickle=False)
        case, wrong = _expected(model, raw, image)
        cases.append(case)
        flat = [pixels.reshape(-1, 3)[positions] for pixels in wrong]
        hints[raw.name] = np.stack(flat) if flat else np.zeros((0, len(positions), 3), np.uint8)
    np.savez_compressed(folder / HINTS, allow_pickle=False, **hints)
    document = {**_about(model), "files": [asdict(case) for case in cases]}
    (folder / MANIFEST).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _about(model: Model) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "sctune": __version__,
        "model": {
            "study": model.meta.get("study"),
            "trial": model.meta.get("trial"),
            "digest": score_digest(model),
        },
        "threshold": None if model.threshold is None else model.threshold.value,
        "rule": None if model.threshold is None else "an image is anomalous where its score is above the threshold",
        "reading": preprocessing(model.config),
        "source of the raw files": "made by sctune from numbers; no image of anyone is among them",
    }


def _refused(raw: Raw, error: str) -> Case:
    digest = sha256(raw.content).hexdigest()
    return Case(raw.name, raw.about, digest, None, None, None, None, error, (), PIXELS, TOLERANCE, 0.0, ())


def _expected(model: Model, raw: Raw, image: Prepared) -> tuple[Case, list[Pixels]]:
    """The case of a file, and the pixels of its wrong pipelines in their order."""
    data, allowed = model.config.data, LOSSY_PIXELS if raw.is_lossy else PIXELS
    native = _native(model, raw.content, image)
    made = wrong_readings(native, raw.wrong, data.image_size, data.resize)
    # one that cannot be told from the right one is none
    wrong = {name: pixels for name, pixels in made.items() if _difference(pixels, image.pixels) > allowed}
    score, *others = _scores(model, [image.pixels, *_rounded(image.pixels, allowed), *wrong.values()])
    near, scores = others[:3], others[3:]
    case = Case(
        file=raw.name,
        about=raw.about,
        sha256=sha256(raw.content).hexdigest(),
        width=image.width,
        height=image.height,
        score=score,
        label=model.labels(score)[0],
        refused=None,
        notes=image.notes,
        pixel_tolerance=allowed,
        score_tolerance=TOLERANCE * float(allowance(np.array(score))),
        rounding=max(abs(one - score) for one in near),
        wrong=tuple(Wrong(name, one) for name, one in zip(wrong, scores, strict=True)),
    )
    return case, list(wrong.values())


def _native(model: Model, content: bytes, image: Prepared) -> Pixels:
    """The whole image uint8 [H, W, 3] in its own size, as the model reads it: padded to a square, and cut out again."""
    longest = max(image.width, image.height)
    data = model.config.data.model_copy(update={"image_size": longest, "resize": "pad"})
    alike = Model(model.method, model.config.model_copy(update={"data": data}), model.parts)
    square = alike.prepare(content).pixels
    top, left = (longest - image.height) // 2, (longest - image.width) // 2
    return np.ascontiguousarray(square[top : top + image.height, left : left + image.width])


def _rounded(pixels: Pixels, most: int) -> list[Pixels]:
    """The same image off by rounding: all brighter, all darker, and at random."""
    wide = pixels.astype(np.int16)
    noise = np.random.default_rng(3).integers(-most, most + 1, pixels.shape)
    return [np.clip(wide + change, 0, 255).astype(np.uint8) for change in (most, -most, noise)]


def _scores(model: Model, images: Sequence[Pixels]) -> list[float]:
    parts = [model.score(list(images[start : start + _CHUNK])) for start in range(0, len(images), _CHUNK)]
    return [float(score) for part in parts for score in part]


def _difference(one: Pixels, other: Pixels) -> int:
    return int(np.abs(one.astype(np.int16) - other).max(initial=0))


def _case(document: Mapping[str, Any]) -> Case:
    fields = dict(document)
    if Path(fields["file"]).name != fields["file"]:
        raise ValueError(f"{fields['file']!r} is no name of a file")
    fields["notes"] = tuple(fields["notes"])
    fields["wrong"] = tuple(Wrong(**one) for one in fields["wrong"])
    return Case(**fields)


def _array(path: Path) -> Pixels:
    try:
        found: Pixels = np.load(path, allow_pickle=False)
        return found
    except (OSError, ValueError) as problem:
        raise ConfigError(f"cannot read {path}: {problem}; make the pack anew") from None
