"""The leak ledger: every look at a study's test images, counted in its record and shown in MLflow."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from sctune.errors import StudyError
from sctune.search.study.database import read_attrs, write_attrs
from sctune.search.study.record import Record
from sctune.search.study.study import Study
from sctune.tracking.run_files import log_run_files, tag_study_run

LOOKS_ATTR = "sctune:test_looks"
LOOKS_TAG = "test_looks"
FILE = "test_looks.json"


class Look(BaseModel):
    """One look. time: ISO 8601, UTC; command: what was run; images: test images that were read; models: how many
    trained models they were scored with; trials: trials that the search had begun by then; decided: what hung on it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    time: str
    command: str
    images: int
    models: int
    trials: int
    decided: str = "nothing"


def looks(study: Study) -> list[Look]:
    """All looks, oldest first; raises StudyError for a damaged ledger or a database that is away."""
    stored = read_attrs(study.record_url, study.name).get(LOOKS_ATTR, [])
    try:
        return [Look.model_validate(row) for row in stored]
    except (ValidationError, TypeError) as problem:
        raise StudyError(f"the ledger of test looks of study {study.name} is damaged: {problem}") from None


def add_look(study: Study, command: str, images: int, models: int, decided: str = "nothing") -> list[Look]:
    """Count a look, before the images are read; gives the whole ledger. Raises StudyError where it cannot be kept."""
    study.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(study.folder / "ledger.lock"):
        return _add(study, command, images, models, decided)


def _add(study: Study, command: str, images: int, models: int, decided: str) -> list[Look]:
    before = looks(study)
    record = Record(study.record_url, study.name)
    try:
        trials = len(record.load())
    finally:
        record.close()
    look = Look(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        images=images,
        models=models,
        trials=trials,
        decided=decided,
    )
    rows = [*before, look]
    write_attrs(study.record_url, study.name, {LOOKS_ATTR: [row.model_dump() for row in rows]})
    return rows


def show_looks(study: Study, rows: Sequence[Look]) -> list[str]:
    """The ledger to the study's run in MLflow; gives warnings, one line each."""
    manifest = study.manifest
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / FILE
        content = {"format_version": 1, "looks": [row.model_dump() for row in rows]}
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        warnings = log_run_files(
            manifest.tracking_uri, manifest.study_id, [None], [file], "study", what="the ledger is"
        )
    return warnings + tag_study_run(manifest.tracking_uri, manifest.study_id, {LOOKS_TAG: str(len(rows))})


def ledger_line(rows: Sequence[Look]) -> str:
    """How often the test images were looked at, in words."""
    if not rows:
        return "the test images have not been looked at"
    times = "once" if len(rows) == 1 else f"{len(rows)} times"
    return f"the test images have been looked at {times}: {', '.join(f'{row.command} ({row.time})' for row in rows)}"
