"""`sctune report`: one study as one page that needs no network; most of it can be read without JavaScript."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sctune.files import replace_files
from sctune.pages import sections
from sctune.pages.confirmed import confirm_section, looks_section
from sctune.pages.figures import Drawing, study_drawings
from sctune.pages.html import Html, joined, missing, picture, rendered
from sctune.pages.reading import StudyView, view_study
from sctune.pages.references import references_section
from sctune.tracking.plots import search_picture

FORMAT_VERSION = 1


@dataclass(frozen=True)
class StudyReport:
    """What was written. left_out: part -> why it could not be made."""

    study: str
    path: Path
    size: int
    left_out: dict[str, str]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `--json`."""
        return {
            "format_version": FORMAT_VERSION,
            "study": self.study,
            "path": str(self.path),
            "bytes": self.size,
            "left_out": self.left_out,
            "warnings": list(self.warnings),
        }


def write_report(root: Path, name: str, path: Path, storage: str | None = None) -> StudyReport:
    """Write the report of a study as it stands; the file is replaced at once.

    storage: URL of the record of a study that another machine began. Raises StudyError for a missing study,
    ConfigError where the file cannot be written. What cannot be shown says why in its place.
    """
    view = view_study(root, name, storage)
    drawings = study_drawings(view.manifest, view.trials, view.result.rows)
    text = page(view, drawings, datetime.now(UTC).isoformat(timespec="seconds"))
    replace_files({path: lambda staged: _write(staged, text)})
    left_out = {one.name: one.reason for one in drawings if one.reason is not None}
    return StudyReport(view.name, path, path.stat().st_size, left_out, view.result.notes)


def page(view: StudyView, drawings: Sequence[Drawing], made: str) -> str:
    """The whole document; made: when, for its foot."""
    from plotly.offline import get_plotlyjs

    drawn = {one.name: one for one in drawings}
    parts: list[tuple[str, str, Html]] = [
        ("summary", "Summary", joined([sections.summary(view), _static(view)])),
        ("references", "References", references_section(view)),
        ("history", "History", _figure(drawn["history"])),
        ("rungs", "Rungs", sections.rung_table(view)),
        ("curves", "Learning curves", _figure(drawn["curves"])),
        ("importance", "Parameter importance", _figure(drawn["importance"])),
        ("slice", "Slice", _figure(drawn["slice"])),
        ("contour", "Contour", _figure(drawn["contour"])),
        ("parallel", "Parallel coordinates", _figure(drawn["parallel"])),
        ("leaderboard", "Leaderboard", sections.leaderboard_table(view)),
        ("confirm", "Confirmation", confirm_section(view.study)),
        ("looks", "Looks at the test images", looks_section(view.study)),
        ("gallery", "Gallery", sections.gallery(view)),
        ("cost", "Cost", sections.cost(view)),
        ("repeat", "Repeat it", sections.repeat(view)),
        ("setup", "What was asked for", sections.setup(view)),
    ]
    values = {
        "study": view.name,
        "made": made,
        "header": sections.header(view),
        "parts": [{"anchor": anchor, "title": title, "content": content} for anchor, title, content in parts],
        "plotly": Html(get_plotlyjs()) if any(one.json is not None for one in drawings) else "",
    }
    return rendered("report.html", values)


def _figure(one: Drawing) -> Html:
    if one.json is None:
        return missing(one.reason)
    without = missing("this figure needs JavaScript; the summary has a still one")
    figure = {"name": one.name, "height": one.height, "figure": json.loads(one.json), "without": without}
    return rendered("plot.html", figure)


def _static(view: StudyView) -> Html:
    """Values and curves as a picture, for paper and for browsers without JavaScript."""
    if not view.result.rows:
        return missing("the study has no trial yet")
    with tempfile.TemporaryDirectory() as folder:
        made = search_picture(view.result.rows, Path(folder) / "search.png", view.objective)
        return picture(made, "Value of each trial, and all learning curves.", "Value of each trial and learning curves")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
