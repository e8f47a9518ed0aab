"""An evaluation as lines for people and as a folder of files."""

from __future__ import annotations

from pathlib import Path

from sctune.errors import ConfigError
from sctune.files import whole_folder
from sctune.serve.evaluate import Evaluation, write_metrics, write_scores
from sctune.serve.measure import number_text, rate_text
from sctune.serve.pictures import write_pictures
from sctune.serve.table import writing


def refuse_folder(folder: Path) -> None:
    """Raises ConfigError for a folder that exists: results of two evaluations are never mixed."""
    if folder.exists():
        raise ConfigError(f"--out {folder} exists; give a new folder")


def write_evaluation(evaluation: Evaluation, folder: Path) -> list[Path]:
    """metrics.json, scores.csv and the pictures in a new folder, whole or not at all."""
    refuse_folder(folder)
    with writing(folder), whole_folder(folder) as staged:
        files = [
            write_metrics(evaluation, staged / "metrics.json"),
            write_scores(evaluation, staged / "scores.csv"),
            *write_pictures(evaluation, staged),
        ]
    return [folder / file.name for file in files]


def evaluation_lines(evaluation: Evaluation) -> list[str]:
    """The numbers for people; +- is one standard error, the intervals are exact 95 % ones."""
    found, threshold = evaluation.metrics, evaluation.model.threshold
    images, confusion = found["images"], found["confusion"]
    lines = [
        f"{evaluation.model.name} on {evaluation.data.name}: {images['normal']} normal, {images['anomalous']} "
        "anomalous images",
        f"AUROC              {number_text(found['auroc'])}",
        f"average precision  {number_text(found['average_precision'])}",
    ]
    if threshold is not None and confusion is not None:
        lines += [
            threshold.line(),
            f"F1                 {number_text(found['f1'])}",
            f"escape rate        {rate_text(found['escape_rate'])}",
            f"false-alarm rate   {rate_text(found['false_alarm_rate'])}",
            f"confusion          anomalous: {confusion['found']} found, {confusion['escaped']} escaped; "
            f"normal: {confusion['passed']} passed, {confusion['false_alarms']} false alarms",
        ]
    heat = found["heat_map"]
    if heat is not None:
        lines.append(
            f"heat maps ({heat['kind']})  AUPRO {heat['aupro']:.4f} on {heat['masks']} masks of {heat['images']} "
            f"images; {heat['with_masks']} of {heat['anomalous']} anomalous images have masks"
        )
    if found["kinds"]:
        width = max(len("kind"), *(len(row["kind"]) for row in found["kinds"]))
        lines.append(f"{'kind':{width}}  images  AUROC              escapes")
        for row in found["kinds"]:
            area, escapes = number_text(row["auroc"]), rate_text(row["escape_rate"])
            lines.append(f"{row['kind']:{width}}  {row['images']:6d}  {area:17}  {escapes}")
    return lines
