"""Other ways to score with a trained detector, all from one pass through its backbone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sctune.config import TrialConfig
from sctune.methods.base import Variant
from sctune.methods.deviation.detector import Detector, for_views, over_turns
from sctune.methods.deviation.heads import PatchResidualHead
from sctune.methods.pixels import normalise, to_pixels

EVALUATION = "model.patch_evaluation"
TOP_K = "score.top_k"
TURNS = "score.turns"
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
SCALE_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
BATCH = 32


def score_variants(config: TrialConfig) -> list[Variant]:
    """All ways to score that mean something for a configuration; the first is its own.

    Top-K share, quarter turns, patch evaluation (patch heads), weight of the normal head, of the seen and pseudo heads
    (four heads), share of the full-size scale (two scales).
    """
    own = config.flat()
    choices: dict[str, tuple[Any, ...]] = {TOP_K: SHARES, TURNS: (1, 4)}
    if config.model.heads == "two_head_patch":
        choices[EVALUATION] = ("exact", "fixed")
    if config.model.heads != "single_head":
        choices["score.normal"] = WEIGHTS
    if config.model.heads == "four_head":
        choices |= {"score.seen": (0.0, 1.0, 2.0), "score.pseudo": (0.0, 1.0, 2.0)}
    if config.model.n_scales == 2:
        choices["score.full_scale"] = SCALE_SHARES
    first = {name: own[name] for name in choices}
    if config.score.top_k is None:
        first[TOP_K] = config.model.top_k
    if first.get(EVALUATION) == "random":
        first[EVALUATION] = "exact"
    points = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    return [first, *(point for point in points if point != first)]


def variant_scores(detector: Detector, images: np.ndarray, variants: Sequence[Variant]) -> list[np.ndarray]:
    """Scores [N] (float64) of uint8 images [N, S, S, 3] for each variant, as a detector with its values would give.

    The detector is left as it was.
    """
    configs = [detector.config.override(variant) for variant in variants]
    parts: list[list[np.ndarray]] = [[] for _ in variants]
    device, channels_last = next(detector.parameters()).device, detector.config.runtime.channels_last
    with _scoring(detector), torch.inference_mode():
        references = {turns: detector.turned_references(turns) for turns in {one.score.turns for one in configs}}
        for start in range(0, len(images), BATCH):
            batch = normalise(to_pixels(images[start : start + BATCH], device, channels_last))
            features = {turns: detector.features(detector.views(batch, turns)) for turns in references}
            # heads are asked once for all variants that only weigh them
            known: dict[tuple[int, float | None, str], dict[str, list[Tensor]]] = {}
            for number, config in enumerate(configs):
                turns, top_k, evaluation = config.score.turns, config.score.top_k, config.model.patch_evaluation
                key = turns, top_k, evaluation
                if key not in known:
                    _evaluate_by(detector, evaluation)
                    held = for_views(references[turns], features[turns])
                    known[key] = detector.scale_scores(features[turns], None, held, top_k)
                scores = over_turns(detector.weigh(known[key], config.score), turns)
                parts[number].append(scores.double().cpu().numpy())
    return [np.concatenate(rows) for rows in parts]


@contextmanager
def _scoring(detector: Detector) -> Iterator[None]:
    was_training = detector.training
    detector.eval()
    try:
        yield
    finally:
        _evaluate_by(detector, detector.config.model.patch_evaluation)
        detector.train(was_training)


def _evaluate_by(detector: Detector, evaluation: Literal["exact", "fixed", "random"]) -> None:
    for name in detector.roles:
        head = detector.head(name)
        if isinstance(head, PatchResidualHead):
            head.evaluation = evaluation
