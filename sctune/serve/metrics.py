"""What the server counts, for Prometheus; each server has a registry of its own."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)

from sctune.deploy.model import ANOMALOUS, Model

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SPREAD = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)

disable_created_metrics()


class Metrics:
    """Counters and histograms of one server process; safe to use from several threads."""

    def __init__(self, model: Model, version: str, digest: str) -> None:
        self._registry = own = CollectorRegistry()
        info = {"study": model.meta.get("study", ""), "trial": model.meta.get("trial", ""), "sctune": version}
        Info("sctune_model", "The model that serves.", registry=own).info(
            {**{key: str(value) for key, value in info.items()}, "digest": digest}
        )
        self._requests = Counter("sctune_requests", "Answered requests.", ("path", "status"), registry=own)
        self._images = Counter(
            "sctune_images",
            "Images by label; none: scored without a threshold, refused: no image that can be read.",
            ("label",),
            registry=own,
        )
        for label in ("normal", ANOMALOUS, "none", "refused"):
            self._images.labels(label)
        self._alarms = Counter("sctune_alarms", "Images called anomalous.", registry=own)
        self._waiting = Gauge("sctune_waiting_images", "Images that wait to be scored.", registry=own)
        self._seconds = Histogram(
            "sctune_predict_seconds",
            "Time from a prediction's request to its answer.",
            buckets=SECONDS,
            registry=own,
        )
        self._scores = Histogram(
            "sctune_score",
            "Anomaly scores; the edges follow the calibration images.",
            buckets=score_edges(model),
            registry=own,
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """One answered request; the latency is counted for predictions only."""
        self._requests.labels(path, str(status)).inc()
        if path == "/predict":
            self._seconds.observe(seconds)

    def image(self, score: float | None, label: str | None) -> None:
        """One image; score None: it was refused."""
        self._images.labels("refused" if score is None else label or "none").inc()
        if label == ANOMALOUS:
            self._alarms.inc()
        if score is not None:
            self._scores.observe(score)

    def text(self, waiting: int) -> str:
        """All of it in Prometheus' text format; waiting: images that wait now."""
        self._waiting.set(waiting)
        return generate_latest(self._registry).decode()


def score_edges(model: Model) -> tuple[float, ...]:
    """Edges of the histogram of scores: from the lowest calibration score to the threshold, and beyond it."""
    calibration, threshold = model.parts.calibration, model.threshold
    if calibration is None or not len(calibration):
        return tuple(float(edge) for edge in range(-4, 13))
    low = min(calibration.scores)
    high = max(calibration.scores) if threshold is None else threshold.value
    step = (high - low) or 1.0
    return tuple(sorted({low + share * step for share in _SPREAD}))
