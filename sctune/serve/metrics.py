"""What the server counts, in Prometheus' text format.

Written here, since the client library of Prometheus is no dependency of sctune: the format is a line per number.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from sctune.deploy.model import ANOMALOUS, Model

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SPREAD = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters and histograms of one server process; safe to use from several threads."""

    def __init__(self, model: Model, version: str, digest: str) -> None:
        self._lock = threading.Lock()
        info = {"study": model.meta.get("study", ""), "trial": model.meta.get("trial", ""), "sctune": version}
        self._info = _labels({**{key: str(value) for key, value in info.items()}, "digest": digest})
        self._requests: dict[Labels, int] = {}
        self._images = {"normal": 0, ANOMALOUS: 0, "none": 0, "refused": 0}
        self._seconds = _Histogram(SECONDS)
        self._scores = _Histogram(score_edges(model))

    def request(self, path: str, status: int, seconds: float) -> None:
        """One answered request; the latency is counted for predictions only."""
        key = (("path", path), ("status", str(status)))
        with self._lock:
            self._requests[key] = self._requests.get(key, 0) + 1
            if path == "/predict":
                self._seconds.add(seconds)

    def image(self, score: float | None, label: str | None) -> None:
        """One image; score None: it was refused."""
        with self._lock:
            self._images["refused" if score is None else label or "none"] += 1
            if score is not None:
                self._scores.add(score)

    def text(self, waiting: int) -> str:
        """All of it; waiting: images that wait now."""
        with self._lock:
            images = dict(self._images)
            families = [
                _family("sctune_model_info", "gauge", "The model that serves.", [(self._info, 1)]),
                _family("sctune_requests_total", "counter", "Answered requests.", sorted(self._requests.items())),
                _family(
                    "sctune_images_total",
                    "counter",
                    "Images by label; none: scored without a threshold, refused: no image that can be read.",
                    [((("label", name),), count) for name, count in images.items()],
                ),
                _family("sctune_alarms_total", "counter", "Images called anomalous.", [((), images[ANOMALOUS])]),
                _family("sctune_waiting_images", "gauge", "Images that wait to be scored.", [((), waiting)]),
                self._seconds.family("sctune_predict_seconds", "Time from a prediction's request to its answer."),
                self._scores.family("sctune_score", "Anomaly scores; the edges follow the calibration images."),
            ]
        return "\n".join(line for family in families for line in family) + "\n"


def score_edges(model: Model) -> tuple[float, ...]:
    """Edges of the histogram of scores: from the lowest calibration score to the threshold, and beyond it."""
    calibration, threshold = model.parts.calibration, model.threshold
    if calibration is None or not len(calibration):
        return tuple(float(edge) for edge in range(-4, 13))
    low = min(calibration.scores)
    high = max(calibration.scores) if threshold is None else threshold.value
    step = (high - low) or 1.0
    return tuple(low + share * step for share in _SPREAD)


class _Histogram:
    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = tuple(sorted(set(edges)))
        self.counts = [0] * (len(self.edges) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.edges, value)] += 1
        self.total += value

    def family(self, name: str, text: str) -> list[str]:
        lines, below = [f"# HELP {name} {text}", f"# TYPE {name} histogram"], 0
        for edge, count in zip((*self.edges, None), self.counts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{le="{"+Inf" if edge is None else repr(edge)}"}} {below}')
        return [*lines, f"{name}_sum {self.total!r}", f"{name}_count {below}"]


def _family(name: str, kind: str, text: str, values: Sequence[tuple[Labels, int]]) -> list[str]:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for labels, value in values:
        inside = ",".join(f'{key}="{_escaped(content)}"' for key, content in labels)
        lines.append(f"{name}{{{inside}}} {value}" if inside else f"{name} {value}")
    return lines


def _labels(values: Mapping[str, str]) -> Labels:
    return tuple(values.items())


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
