"""`sctune predict`: images in files and folders to rows of a table, and heat maps as PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any

from sctune.deploy.incoming import shown
from sctune.deploy.model import Model, heat_map_png, score_digest
from sctune.errors import ConfigError
from sctune.files import whole_file
from sctune.serve.appending import Counts, appending
from sctune.serve.changes import Changes, find_changes
from sctune.serve.inputs import ScoredFile, scored
from sctune.serve.stopping import StoppedPredictionError
from sctune.serve.table import COLUMNS, HEAT_MAP, FileIdentity, Row, writing

_STEM = 80
"""Letters of an image's own name in that of its heat map, which file systems limit."""


@dataclass(frozen=True)
class Progress:
    """Images with a row by now, and those of all."""

    done: int
    total: int


@dataclass(frozen=True)
class Predicted:
    """What a command did. counts: of all rows of the table, `earlier` of which were there before and stayed.

    changes: rows that were there before and are no longer those of their files.
    """

    counts: Counts
    earlier: int
    total: int
    changes: Changes


def predict_to_file(
    model: Model,
    paths: Sequence[str],
    out: Path,
    heat_maps: Path | None = None,
    told: Callable[[Progress], None] = lambda _: None,
    asked: Event | None = None,
) -> Predicted:
    """Append a row for each path that has none in `out` yet (CSV or JSONL by suffix), in the order given.

    Rows of files whose content is another one by now are made anew, behind the others; each path has one row.
    heat_maps: folder of a PNG for each image. A row is written after its heat map. Raises DataError for a table of
    another model or threshold, StoppedPredictionError when `asked` was set: what is done stays.
    """
    with appending(out, identity_of(model, heat_maps is not None)) as table:
        changes = find_changes(table.known, paths)
        # at once, and before anything is scored: at no time has a path two rows, or one of what it was before
        table.renew(changes.stale, changes.touched)
        earlier = table.counts.rows
        left = [path for path in paths if shown(path) not in table.known]
        there = len(paths) - len(left)
        told(Progress(there, len(paths)))
        for rows in predicted_rows(model, left, heat_maps):
            table.write(rows)
            there += len(rows)
            told(Progress(there, len(paths)))
            if asked is not None and asked.is_set() and there < len(paths):
                raise StoppedPredictionError(
                    f"stopped after {there} of {len(paths)} images; the same command goes on behind the rows in {out}"
                )
        return Predicted(table.counts, earlier, len(paths), changes)


def refuse_inside(folder: Path, places: Sequence[str]) -> None:
    """Raises ConfigError for a folder of heat maps below one of images: the next run would score them too."""
    for place in places:
        above = Path(place).expanduser().resolve()
        # by their true places: a link or .. must not hide that one lies in the other
        if folder.resolve().is_relative_to(above):
            raise ConfigError(f"--heat-maps {folder} lies in {above}, whose images are scored; give a folder elsewhere")


def predicted_rows(model: Model, paths: Iterable[str], heat_maps: Path | None = None) -> Iterator[list[Row]]:
    """Chunks of rows in the order of the paths: the columns of `serve/table.py`, and HEAT_MAP where there is a folder.

    A file that is no image becomes a row with its error. Scores are those of `Model.score`, bit for bit.
    """
    if heat_maps is not None:
        with writing(heat_maps):
            heat_maps.mkdir(parents=True, exist_ok=True)
    for chunk in scored(model, paths):
        rows = _rows(model, chunk)
        if heat_maps is not None:
            for row, name in zip(rows, _write_heat_maps(model, chunk, heat_maps), strict=True):
                row[HEAT_MAP] = name
        yield list(rows)


def identity_of(model: Model, with_heat_maps: bool = False) -> FileIdentity:
    """What a table of this model says of itself."""
    columns = (*COLUMNS, HEAT_MAP) if with_heat_maps else COLUMNS
    threshold = None if model.threshold is None else model.threshold.value
    return FileIdentity(model.name, score_digest(model), threshold, columns)


def heat_map_name(path: str) -> str:
    """File name of an image's heat map: the image's own, and ten digits of the SHA-256 of its path in the table.

    So images of the same name in different folders have different ones.
    """
    stem = Path(shown(path)).stem.encode()[:_STEM].decode(errors="ignore")
    return f"{stem}-{sha256(shown(path).encode()).hexdigest()[:10]}.png"


def _rows(model: Model, chunk: Sequence[ScoredFile]) -> list[dict[str, Any]]:
    threshold = None if model.threshold is None else model.threshold.value
    rows = []
    for one in chunk:
        row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"path": shown(one.path), "error": one.error}
        row["threshold"] = threshold
        if one.file is not None:
            row |= {"size": one.file.size, "mtime": one.file.time, "sha256": one.file.digest}
        if one.image is not None:
            row |= {**one.image.measures, "note": one.image.note}
        if one.score is not None:
            row |= {"score": one.score, "label": model.labels(one.score)[0]}
        rows.append(row)
    return rows


def _write_heat_maps(model: Model, chunk: Sequence[ScoredFile], folder: Path) -> list[str | None]:
    good = [one for one in chunk if one.image is not None and one.score is not None]
    images = [one.image.pixels for one in good if one.image is not None]
    maps = model.heat_maps(images) if images else ()
    names: dict[str, str] = {}
    for one, image, heat in zip(good, images, maps, strict=True):
        names[one.path] = heat_map_name(one.path)
        target = folder / names[one.path]
        with writing(target), whole_file(target) as staged:
            staged.write_bytes(heat_map_png(image, heat))
    return [names.get(one.path) for one in chunk]
