"""`sctune recalibrate`: a new threshold from new good images; the weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sctune.deploy.calibration import Calibration, Prepared
from sctune.deploy.card import card_with_decision
from sctune.deploy.locate import Address, find_version, model_folder
from sctune.deploy.model import Model, ModelParts, load_model_folder, write_model_folder
from sctune.deploy.register import Registered, log_model_run
from sctune.deploy.registry import Move, promote
from sctune.errors import ConfigError, DataError, TrackingError
from sctune.files import whole_folder
from sctune.metrics.threshold import DEFAULT_RATE, Rate, Threshold, conformal_threshold, rate
from sctune.serve.inputs import scored
from sctune.serve.results import refuse_folder
from sctune.serve.table import writing
from sctune.tracking.server import mlflow_client, safe_uri, scrub

LEAST = 10
"""Images below which a threshold would promise next to nothing."""
WEIGHTS = "weights.safetensors"
NOTE = "recalibrated"
"""Key of the model's meta data that tells of it."""


@dataclass(frozen=True)
class Recalibrated:
    """parts: of the new model. above_old: new images above the threshold until now, None where there was none.

    failed: images that could not be scored; known: those left out since the model was made from them.
    """

    parts: ModelParts
    threshold: Threshold
    above_old: Rate | None
    failed: int
    known: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "threshold": self.threshold.to_dict(),
            "before": self.parts.meta[NOTE]["before"],
            "images": self.threshold.normals,
            "failed": self.failed,
            "known": self.known,
        }


@dataclass(frozen=True)
class Wish:
    """What is to be done. wanted: false-alarm rate; folder: new one for the model; promote: register it as champion."""

    wanted: float | None = None
    folder: Path | None = None
    register: bool = False
    promote: bool = False
    tracking_uri: str | None = None
    device: str = "auto"


@dataclass(frozen=True)
class RecalibrationOutcome:
    """What was done. model: where the model until now lies; registered, move: None where not asked for."""

    model: str
    made: Recalibrated
    folder: Path | None
    registered: Registered | None
    move: Move | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            **self.made.to_dict(),
            "out": None if self.folder is None else str(self.folder),
            "version": None if self.registered is None else self.registered.version,
            "champion": self.move is not None,
        }


def run_recalibration(
    where: str, paths: Sequence[str], source: str, wish: Wish, told: Callable[[int, int], None]
) -> RecalibrationOutcome:
    """Open the model, recalibrate it, and write or register it as wished.

    Raises ConfigError where a folder is to be registered or the new folder exists, and what `recalibrate`,
    `open_model` and `register` raise.
    """
    if wish.register and not where.startswith("models:"):
        raise ConfigError(f"--register: {where} is a folder and no registered model; give --out DIR")
    if wish.folder is not None:
        refuse_folder(wish.folder)
    address = find_version(where, wish.tracking_uri) if where.startswith("models:") else None
    # by its number: an alias may move meanwhile
    place = where if address is None else f"models:/{address.name}/{address.version}"
    registered = move = None
    with model_folder(place, wish.tracking_uri) as folder:
        model, weights = load_model_folder(folder, wish.device), folder / WEIGHTS
        made = recalibrate(model, paths, source, wish.wanted, told)
        if wish.folder is not None:
            write_folder(wish.folder, model, weights, made)
        if address is not None and wish.register:
            registered = register(address, model, weights, made)
            move = make_champion(address, registered, made) if wish.promote else None
    return RecalibrationOutcome(place, made, wish.folder, registered, move)


def recalibrate(
    model: Model,
    paths: Sequence[str],
    source: str,
    wanted: float | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Recalibrated:
    """Threshold and calibration from images that are all good.

    source: what they are, in words; wanted: false-alarm rate in (0, 1), None for the one of the threshold until now.
    Images that the model was made from are left out: its scores of them are too low. Raises DataError for fewer than
    LEAST others.
    """
    earlier = set(model.meta.get(NOTE, {}).get("sha256", ()))
    known, digests = set(model.parts.development) - earlier, set()
    scores: list[float] = []
    images: list[Prepared] = []
    done = failed = left_out = 0
    for chunk in scored(model, paths):
        for one in chunk:
            if one.image is None or one.score is None or one.file is None:
                failed += 1
                continue
            digest = one.file.digest
            if digest in known:
                left_out += 1
            elif digest not in digests:  # a copy says nothing new
                digests.add(digest)
                scores.append(one.score)
                # without its pixels, which a calibration does not keep
                images.append(replace(one.image, pixels=one.image.pixels[:0]))
        done += len(chunk)
        told(done, len(paths))
    if len(scores) < LEAST:
        reasons = [f"{failed} unreadable"] * bool(failed) + [f"{left_out} that the model was made from"] * bool(
            left_out
        )
        more = f" (beside {' and '.join(reasons)})" if reasons else ""
        raise DataError(
            f"{len(scores)} different new images{more} are too few to set a threshold by: {LEAST} at least, and n of "
            "them reach a false-alarm rate of 1 / (n + 1)"
        )
    threshold = conformal_threshold(scores, _wanted(model) if wanted is None else wanted)
    old = model.threshold
    above = None if old is None else rate(int(old.anomalous(scores).sum()), len(scores))
    calibration = Calibration.of(f"{len(scores)} normal images: {source}", scores, images)
    return Recalibrated(_parts(model, threshold, calibration, digests), threshold, above, failed, left_out)


def write_folder(folder: Path, model: Model, weights: Path, made: Recalibrated) -> Path:
    """The new model as a folder, whole or not at all; weights: of the model until now."""
    with writing(folder), whole_folder(folder) as staged:
        write_model_folder(staged, model.config, weights, made.parts)
    return folder


def register(address: Address, model: Model, weights: Path, made: Recalibrated) -> Registered:
    """The new model as a version of the same registered model, logged to the run of the version at `address`.

    The alias `candidate` names it then. Raises TrackingError.
    """
    run = _asked(address, lambda: mlflow_client(address.uri).get_model_version(address.name, str(address.version)))
    again = "the same command tries again, and --out DIR needs no registry"
    return log_model_run(address.uri, run.run_id, model.config, weights, made.parts, address.name, again=again)


def make_champion(address: Address, registered: Registered, made: Recalibrated) -> Move:
    """Let `champion` name the new version; `sctune rollback` goes back. Raises TrackingError."""
    reason = f"recalibrated on {made.threshold.normals} good images, no gate"
    client = mlflow_client(address.uri)
    return _asked(address, lambda: promote(client, registered.name, registered.version, reason))


def outcome_lines(outcome: RecalibrationOutcome) -> list[str]:
    """What changed and where it is, for people."""
    made, registered, move = outcome.made, outcome.registered, outcome.move
    before = made.parts.meta[NOTE]["before"]
    lines = [made.threshold.line()]
    if before is not None:
        lines.append(f"until now {Threshold.from_dict(before).line()}")
    if made.above_old is not None:
        lines.append(f"above the threshold until now: {made.above_old} of these images")
    if made.failed:
        lines.append(f"left out, since they could not be scored: {made.failed}")
    if made.known:
        lines.append(f"left out, since the model was made from them and scores them too low: {made.known}")
    if outcome.folder is not None:
        lines.append(f"written: {outcome.folder}")
    if registered is not None:
        lines.append(f"registered: version {registered.version} of {registered.name}, {registered.uri}")
    if registered is not None and move is None:
        lines.append("the champion stays as it was; --promote moves it")
    if move is not None:
        back = f"; before: version {move.before}, `sctune rollback` goes back" if move.before is not None else ""
        lines.append(f"models:/{move.name}@{move.alias} is version {move.version} now{back}")
    if outcome.folder is None and registered is None:
        lines.append("nothing was written; give --out DIR, or --register for a registered model")
    return lines


def _wanted(model: Model) -> float:
    old = model.threshold
    return DEFAULT_RATE if old is None or old.wanted is None else old.wanted


def _parts(model: Model, threshold: Threshold, calibration: Calibration, digests: set[str]) -> ModelParts:
    old, time = model.threshold, datetime.now(UTC).isoformat(timespec="seconds")
    before = None if old is None else old.to_dict()
    note = {
        "time": time,
        "source": calibration.source,
        "before": before,
        # of the model as it was made, which its results were measured at
        "first": model.meta.get(NOTE, {}).get("first", before),
        "sha256": sorted(digests),
    }
    card = model.parts.card
    notes = [f"set anew on {time[:10]} by `sctune recalibrate` from {calibration.source}"]
    if note["first"] is not None:
        measured = Threshold.from_dict(note["first"]).line()
        notes.append(f"rates elsewhere in this card were measured at the threshold that it was made with: {measured}")
    return replace(
        model.parts,
        meta={**model.meta, NOTE: note},
        threshold=threshold,
        calibration=calibration,
        development=sorted({*model.parts.development, *digests}),
        card=None if card is None else card_with_decision(card, replace(model.parts, threshold=threshold), notes),
    )


def _asked(address: Address, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as problem:  # whatever MLflow raises
        raise TrackingError(f"the registry at {safe_uri(address.uri)} refused: {scrub(problem, address.uri)}") from None
