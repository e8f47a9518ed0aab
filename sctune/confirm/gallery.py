"""The picture of a final form's escapes, beside those of the single model, each image under the heat maps of both."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sctune.confirm.escapes import Escapes, Judged, counts_line, sorted_out
from sctune.confirm.final import Final
from sctune.confirm.results import Confirmation, confirm_folder
from sctune.data.catalog import ImageFile
from sctune.deploy.build import choose_heat_map
from sctune.deploy.model import under_heat_map
from sctune.files import replace_files
from sctune.methods.base import Fitted
from sctune.search.study.study import Study
from sctune.tracking.mistakes import Block, Look, Shown, blocks_picture, short_path
from sctune.tracking.run_files import log_run_files
from sctune.train.heatmap import Kind, either_heat_maps, scaled
from sctune.train.single import read_files
from sctune.train.trainer import Trainer

_log = logging.getLogger(__name__)

DEVELOPMENT, TEST = "development", "test"
"""Which images are shown: those that the forms were compared on, or those of a look that was taken anyway."""

MOST = 6
"""Images of a block."""
ARTIFACTS = "confirm"
"""Folder of the study's run in MLflow."""
WITH_MAPS = Look(3, 3, 1.2, ("image", "single model", "final form"))
WITHOUT_MAPS = Look(6, 1, 1.7, above=0.7)


class Scene(NamedTuple):
    """What is pictured. where: DEVELOPMENT or TEST; trainer: of the single model; images: as both call them.

    models: the single one and the final form, None where it would show what it has learned by heart.
    """

    where: str
    trainer: Trainer
    images: Sequence[Judged]
    models: tuple[Fitted, Fitted] | None


class Drawn(NamedTuple):
    """path -> pictures [S, S, 3] of an image, and the kind of its anomaly; note: about heat maps."""

    pictures: Mapping[str, Sequence[np.ndarray]]
    kinds: Mapping[str, str]
    look: Look
    note: str


def gallery_path(study: Study, found: Confirmation, final: Final, where: str) -> Path:
    """Where the picture of a final form lies, or would."""
    of = re.sub(r"[^A-Za-z0-9_.]+", "_", final.subset)
    parts = (final.candidate, final.form.slug, of, f"escapes-{where}.png")
    return confirm_folder(study) / found.confirm_study / "--".join(part for part in parts if part)


def galleries(study: Study, found: Confirmation, final: Final) -> list[Path]:
    """The pictures of a final form that are here; none of one that another machine made."""
    made = (gallery_path(study, found, final, where) for where in (DEVELOPMENT, TEST))
    return [path for path in made if path.is_file()]


def gallery_lines(study: Study, found: Confirmation, final: Final) -> list[str]:
    """Where the pictures of a final form that was made before lie, or that there is none."""
    made = galleries(study, found, final)
    if made:
        return [f"its escapes beside those of the single model: {path}" for path in made]
    return [
        f"no picture of the escapes of {final.candidate}, {final.form.name}, is in {confirm_folder(study)}: it is made "
        "with the form, where that is made or scored"
    ]


def show_escapes(study: Study, found: Confirmation, final: Final, scene: Scene) -> list[str]:
    """Make the picture, and log it to the study's run; gives lines for people, why there is none among them.

    Nothing that goes wrong here is worth a look at the test images: it is told, and logged.
    """
    path = gallery_path(study, found, final, scene.where)
    try:
        escapes = sorted_out(scene.images)
        draw = partial(_draw, study=study, found=found, final=final, scene=scene, escapes=escapes)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_files({path: draw}, "--study-root")
    except Exception as problem:  # whatever a method or the disk raises
        _log.exception("no picture of the escapes of %s", final.candidate)
        return [f"no picture of its escapes: {problem}"]
    manifest = study.manifest
    trouble = log_run_files(
        manifest.tracking_uri, manifest.study_id, [None], [path], ARTIFACTS, what="the picture of its escapes is"
    )
    return [
        f"on {scene.where} images: {counts_line(escapes, final.form.name)}",
        f"its escapes beside those of the single model: {path}",
        *(f"warning: {line}" for line in trouble),
    ]


def _draw(path: Path, study: Study, found: Confirmation, final: Final, scene: Scene, escapes: Escapes) -> None:
    heads = {
        f"Found by the final form: {len(escapes.found)} of {escapes.single} escapes of the single model": escapes.found,
        f"Escapes of both: {len(escapes.both)} of {escapes.anomalous} anomalous images": escapes.both,
        f"Escapes of the final form alone: {len(escapes.lost)}": escapes.lost,
        f"False alarms: {sum(row.single.anomalous for row in escapes.alarms)} of the single model, "
        f"{sum(row.final.anomalous for row in escapes.alarms)} of the final form, of {escapes.normal} normal images": (
            escapes.alarms
        ),
    }
    shown = {head: rows[:MOST] for head, rows in heads.items()}
    drawn = _drawn(scene, [row.path for rows in shown.values() for row in rows])
    blocks = []
    for head, rows in shown.items():
        more = f"; the {MOST} worst" if len(heads[head]) > MOST else ""
        pictured = [Shown(drawn.pictures[row.path], _text(row, drawn)) for row in rows if row.path in drawn.pictures]
        blocks.append(Block(f"{head}{more}", pictured))
    images = f"{escapes.normal} normal and {escapes.anomalous} anomalous test images"
    source = images if scene.where == TEST else final.basis
    title = f"study {study.name}: {final.candidate}, {final.form.name}, beside the single model\n{source}"
    foot = [_threshold_note(found, scene), drawn.note, study.manifest.data.attribution or ""]
    blocks_picture(blocks, drawn.look, path, title, [line for line in foot if line])


def _drawn(scene: Scene, paths: Sequence[str]) -> Drawn:
    split = scene.trainer.split
    known: dict[str, ImageFile] = {file.path: file for file in (*split.development, *split.test)}
    files, images = read_files(scene.trainer, [known[path] for path in dict.fromkeys(paths)])
    pictures: list[list[np.ndarray]] = [[image] for image in images]
    kind = scene.trainer.config.method.name
    if scene.models is None:
        note = "No heat maps: models of folds are not kept, and the final model has learned from some of these images."
    else:
        chosen: Kind = choose_heat_map(scene.trainer)["kind"] if files else "gradient"
        maps = [either_heat_maps(model, images, chosen) for model in scene.models]
        note = f"No heat maps: method {kind} has none."
        if all(one is not None for one in maps):
            note = "Heat maps: each in its own range; that of an ensemble is the mean of its members' maps."
            for one in maps:
                assert one is not None
                for row, heat in enumerate(scaled(one)):
                    pictures[row].append(under_heat_map(images[row], heat))
    with_maps = all(len(row) > 1 for row in pictures) and bool(pictures)
    return Drawn(
        {file.path: row for file, row in zip(files, pictures, strict=True)},
        {file.path: file.kind for file in files},
        WITH_MAPS if with_maps else WITHOUT_MAPS,
        note,
    )


def _text(row: Judged, drawn: Drawn) -> str:
    right, wrong = ("found", "escaped") if row.label else ("normal", "false alarm")
    told = [
        f"{name} {of.score:.4g} {right if of.anomalous == bool(row.label) else wrong}"
        for name, of in (("single", row.single), ("final", row.final))
    ]
    if drawn.look is WITH_MAPS:
        kind = f"{drawn.kinds[row.path]}, " if row.label else ""
        return f"{short_path(row.path, 44)}\n{kind}{', '.join(told)}"
    return "\n".join([short_path(row.path, 26), *([drawn.kinds[row.path]] if row.label else []), *told])


def _threshold_note(found: Confirmation, scene: Scene) -> str:
    wanted = f"conformal, for {100 * found.false_alarm_rate:.3g} % false alarms"
    if scene.models is None:
        return (
            "Each fold was scored by models that were not trained on it, at thresholds of its own normal images "
            f"({wanted}), since these models have no calibration images."
        )
    single, final = (of.threshold for of in (scene.images[0].single, scene.images[0].final))
    return f"Thresholds: single model {single:.4g}, final form {final:.4g} ({wanted}, by the calibration images)."
