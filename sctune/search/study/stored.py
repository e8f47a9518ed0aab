"""Reading a study that is not running here: its record and what follows from it."""

from __future__ import annotations

from pathlib import Path

from sctune.errors import DataError
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.references import read_references
from sctune.search.study.result import StudyResult, study_result
from sctune.search.study.splits import selection_labels, study_splits
from sctune.search.study.study import Study
from sctune.tracking.server import safe_uri


def load_result(study_root: Path, name: str, noise: bool = True, storage: str | None = None) -> StudyResult:
    """The result of a study as it stands now; without `noise` the data are not looked at.

    storage: URL of the record of a study that another machine began.
    Raises StudyError for a missing study; where the data are gone the noise is left out and said so.
    """
    study = Study.open(study_root, name, storage)
    manifest = study.manifest
    labels, missing = stored_labels(manifest) if noise else (None, None)
    notes = [] if missing is None else [f"no standard errors: {missing}"]
    try:
        trials = study.record.load()
        references = read_references(manifest, study.record.load_references())
    finally:
        study.record.close()
    notes += [study.record.foreign_note] if study.record.foreign_note else []
    seconds = sum(launch.seconds or 0.0 for launch in manifest.launches)
    uri = safe_uri(manifest.tracking_uri)
    return study_result(study, trials, labels, seconds, tracking_uri=uri, notes=notes, references=references)


def stored_labels(manifest: StudyManifest) -> tuple[dict[str, list[int]] | None, str | None]:
    """Task key -> labels of a study's scored images, or None and why: its data are gone, or not what they were."""
    try:
        return selection_labels(manifest, study_splits(manifest)), None
    except DataError as problem:
        return None, str(problem)
