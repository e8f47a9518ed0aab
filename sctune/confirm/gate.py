"""The promotion gate: what has to hold before a new model takes the place of the one that serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sctune.data.catalog import NOT_STATED
from sctune.data.images import file_digest
from sctune.deploy.card import is_non_commercial, is_unclear
from sctune.deploy.export import Kind, exported_scores
from sctune.deploy.model import Model
from sctune.deploy.parity import TOLERANCE, score_parity
from sctune.deploy.speed import Speed
from sctune.errors import DataError, SctuneError
from sctune.metrics.image_level import auroc
from sctune.metrics.statistics import Scores, seeded_difference
from sctune.metrics.threshold import escape_rate, false_alarm_rate

AUROC_MARGIN = 0.005
LATENCY_MS = 1000.0
LEAST_IMAGES = 10
"""Of each class in an acceptance set: fewer say nothing about a difference of 0.005."""


@dataclass(frozen=True)
class Step:
    """One step of the gate; detail: the figures, and what to do where it failed."""

    name: str
    passed: bool
    detail: str

    def line(self) -> str:
        return f"{'passed' if self.passed else 'FAILED'} {self.name}: {self.detail}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Acceptance:
    """Labelled images that neither model has seen. left_out: how many were taken out, since one had."""

    source: str
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    left_out: int = 0


def licence_step(licence: str | None, accepted: bool) -> Step:
    """Whether a model of these data may be used as it is going to be; images of one's own state no licence."""
    text = licence or NOT_STATED
    if not (is_non_commercial(licence) or is_unclear(licence)):
        return Step("licence", True, "not stated: images of your own" if text == NOT_STATED else text)
    if is_unclear(licence) and not is_non_commercial(licence) and not accepted:
        return Step("licence", False, f"{text}: nobody says that the images may be used commercially; --accept-licence "
                    "says that you may use them as you are going to")  # fmt: skip
    if accepted:
        return Step("licence", True, f"{text}: accepted, for non-commercial use")
    return Step("licence", False, f"{text} forbids commercial use of what is made from the data; --accept-licence says "
                "that you keep to it")  # fmt: skip


def latency_step(speed: Speed, limit_ms: float) -> Step:
    detail = f"{speed.line()}; limit {limit_ms:.0f} ms"
    if speed.p95_ms <= limit_ms:
        return Step("latency", True, detail)
    return Step("latency", False, f"{detail}: take a smaller image or network, a faster machine, or --max-latency")


def parity_step(trained: np.ndarray, forms: dict[str, np.ndarray], threshold: float | None) -> Step:
    """Whether all forms of a model give the trainer's scores [N]; no label may flip at the threshold."""
    found = {name: score_parity(trained, scores, threshold) for name, scores in forms.items()}
    parts = [
        f"{name} {one.difference:.1e}, {one.flips} flipped{f', {one.ties} on the threshold itself' if one.ties else ''}"
        for name, one in found.items()
    ]
    detail = f"largest difference from the trainer's scores on {len(trained)} images: {'; '.join(parts)}"
    holds = all(one.holds for one in found.values())
    return Step("parity", holds, f"{detail} (at most {TOLERANCE:g}, none)")


def export_form(model: Model, pixels: np.ndarray, folder: Path) -> tuple[str, np.ndarray]:
    """Scores of the exported model, in ONNX where it is installed, else as a program of torch."""
    from importlib.util import find_spec

    have = all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    kind: Kind = "onnx" if have else "torch"
    return f"exported ({kind})", exported_scores(model, folder, kind, pixels)


def unseen(source: str, root: Path, files: Sequence[tuple[str, int]], models: Sequence[Model]) -> Acceptance:
    """The images that are in no model's development data, by content; files: path below root, and label."""
    seen = frozenset().union(*(model.development for model in models))
    kept = [(root / path, label) for path, label in files if file_digest(root / path) not in seen]
    return Acceptance(
        source, tuple(path for path, _ in kept), tuple(label for _, label in kept), len(files) - len(kept)
    )


def acceptance_step(candidate: Model, champion: Model, images: Acceptance) -> Step:
    """Whether the candidate is not worse than the champion on images that neither has seen.

    AUROC: the lower end of the paired 95 % interval of the difference must lie above -0.005. Escapes: no more than the
    champion's, each at its own threshold.
    """
    try:
        return _compared(candidate, champion, images)
    except SctuneError as problem:
        return Step("acceptance", False, str(problem))


def _compared(candidate: Model, champion: Model, images: Acceptance) -> Step:
    labels = np.array(images.labels)
    counts = [int((labels == label).sum()) for label in (0, 1)]
    if min(counts) < LEAST_IMAGES:
        raise DataError(
            f"{counts[0]} normal and {counts[1]} anomalous images of {images.source} were seen by neither model "
            f"({images.left_out} were by one of them); {LEAST_IMAGES} of each are needed: give others with --acceptance"
        )
    for model, name in ((candidate, "candidate"), (champion, "champion")):
        if model.threshold is None:
            raise DataError(f"the {name} has no threshold, so its escapes cannot be compared")
        if not model.development:
            raise DataError(f"the {name} does not say which images it was made from; deploy it anew")
    if not candidate.development & champion.development:
        raise DataError(
            "the champion was made from other images altogether, and may be of another product: give this model "
            "another place with --name, or promote it with --force"
        )
    ours, theirs = _scores(candidate, images), _scores(champion, images)
    gap = seeded_difference([ours], [theirs])
    assert candidate.threshold is not None and champion.threshold is not None
    escapes = escape_rate(labels, ours.scores, candidate.threshold.value)
    before = escape_rate(labels, theirs.scores, champion.threshold.value)
    passed = gap.low > -AUROC_MARGIN and escapes.count <= before.count
    detail = (
        f"on {images.source} ({counts[0]} normal, {counts[1]} anomalous images that neither has seen) AUROC "
        f"{auroc(labels, ours.scores):.4f} against the champion's {auroc(labels, theirs.scores):.4f}, difference "
        f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f}; must be above -{AUROC_MARGIN:g}); escapes {escapes} "
        f"against {before}; false alarms {false_alarm_rate(labels, ours.scores, candidate.threshold.value)} against "
        f"{false_alarm_rate(labels, theirs.scores, champion.threshold.value)}"
    )
    return Step("acceptance", passed, detail)


def _scores(model: Model, images: Acceptance) -> Scores:
    # one at a time: the pixels of all would be large
    values = [float(model.score([model.prepare(path).pixels])[0]) for path in images.paths]
    return Scores(
        pool="acceptance",
        subset="",
        paths=tuple(map(str, images.paths)),
        labels=np.array(images.labels),
        scores=np.array(values),
    )
