"""Which changes fit a part: a texture whose symmetries are known, and the interval against a bootstrap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sctune.cli import app
from sctune.config import TrialConfig
from sctune.data.images import ImageCache
from sctune.errors import DataError
from sctune.metrics.image_level import auroc
from sctune.train.fitting import CHANGES, compared, fitting_changes


def test_what_changes_no_score_fits_exactly() -> None:
    scores = np.random.default_rng(0).normal(size=60)
    same = compared("x", scores, scores)
    assert (same.auroc, same.low, same.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-9) and same.fits
    apart = compared("x", scores, scores + 100)
    assert (apart.auroc, apart.low, apart.fits) == (1.0, 1.0, False)
    # images that look more normal than before teach nothing wrong
    assert compared("x", scores, scores - 100).fits


def test_the_error_is_that_of_a_bootstrap_over_images() -> None:
    """Both scores of an image are drawn together: as if they were not, the interval would be twice as wide."""
    random = np.random.default_rng(1)
    plain = random.normal(size=120)
    altered = plain + 0.3 + 0.3 * random.normal(size=120)
    found = compared("x", plain, altered)
    labels, values = np.repeat([0, 1], 120), []
    for _ in range(800):
        rows = random.integers(0, 120, 120)
        values.append(auroc(labels, np.r_[plain[rows], altered[rows]]))
    assert found.auroc == pytest.approx(auroc(labels, np.r_[plain, altered]), abs=1e-9)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(np.std(values), rel=0.15)
    assert (found.high - found.low) / (2 * 1.96) < 0.6 * np.sqrt(2 / 12 / 120)


@pytest.mark.parametrize(
    ("auroc", "low", "fits", "words"),
    [
        (0.55, 0.52, True, "; fits"),
        (0.65, 0.45, True, "as far as so few images tell"),
        (0.65, 0.61, False, "does not fit"),
    ],
)
def test_verdicts(auroc: float, low: float, fits: bool, words: str) -> None:
    from sctune.train.fitting import Fit

    row = Fit("augment.shift=0.1", auroc, low, 0.9)
    assert row.fits == fits and words in row.line and "\n" not in row.line


def test_stripes_may_be_mirrored_and_not_turned(tiny: TrialConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    array = ImageCache.array

    def remembering(self: ImageCache, root: Path, paths: Any, *rest: Any) -> Any:
        read.extend(paths)
        return array(self, root, paths, *rest)

    monkeypatch.setattr(ImageCache, "array", remembering)
    found = fitting_changes(tiny)
    rows = {row.setting: row for row in found.rows}
    assert rows.keys() == CHANGES.keys()
    for mirrored in ("augment.flip=horizontal", "augment.flip=vertical"):
        assert rows[mirrored].fits and rows[mirrored].auroc < 0.6
    for other in ("augment.rotation=free", "augment.brightness=0.2"):
        assert not rows[other].fits and rows[other].low > 0.6
    # horizontal rows become columns
    assert rows["augment.rotation=quarter"].auroc > rows["augment.flip=vertical"].auroc + 0.1
    assert (found.held, found.fitted) == (len(set(read)) // 3, len(set(read)) - len(set(read)) // 3)
    assert all(path.startswith("train/good/") for path in read)
    assert fitting_changes(tiny.override({"augment.kind": "none", "data.n_anomalies": 2})) == found


def test_too_few_images_are_refused(tiny: TrialConfig, tmp_path: Path, image_folder: Path) -> None:
    for number in range(40):
        for folder in ("train/good", "test/good", "test/spot"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            if (source := image_folder / folder / f"{number:03d}.png").exists():
                (tmp_path / folder / source.name).write_bytes(source.read_bytes())
    with pytest.raises(DataError, match="40 normal images are too few to hold some out; 45 are needed"):
        fitting_changes(tiny.override({"data.source": str(tmp_path)}))


def test_the_command(image_folder: Path) -> None:
    words = ["data", "changes", str(image_folder), "--profile", "smoke", "--set", "model.weights=random"]
    done = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["format_version"] == 1 and {row["setting"] for row in shown["changes"]} == set(CHANGES)
    assert all(0 <= row["low"] <= row["auroc"] <= row["high"] <= 1 for row in shown["changes"])
