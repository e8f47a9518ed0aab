"""Recorded tables for tests: whatever values they shall have, without a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sctune.search.simulate.table import About, RecordedTable
from tests.builders import ANYWHERE, make_space

SEED = 101


def make_table(
    folder: Path,
    values: np.ndarray,
    parameters: dict[str, Any],
    configurations: list[dict[str, Any]],
    scored: int = 0,
    **tree: Any,
) -> RecordedTable:
    """values: [C, S, E]; scored: images of which random scores are kept, for paired errors; tree: more of the space."""
    set_ = {**ANYWHERE, "budget.epochs": values.shape[2]}
    space = make_space(folder, parameters=parameters, set=set_, **tree)
    seeds = [SEED + place for place in range(values.shape[1])]
    keys = [f"seed{seed}" for seed in seeds]
    rng = np.random.default_rng(0)
    about = About(
        name="drawn",
        space=space.to_dict(),
        config=space.base.model_dump(),
        profile="cpu",
        objective="auroc",
        configurations=configurations,
        seeds=seeds,
        tasks=[[key] for key in keys],
        selection="extra",
    )
    labels = np.arange(scored) % 2
    return RecordedTable(
        about,
        values,
        np.ones_like(values),
        np.zeros(values.shape[:2]),
        {key: labels for key in keys if scored},
        {key: labels + rng.normal(size=(len(values), scored)) for key in keys if scored},
        {},
    )


def one_choice(count: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A space of one unordered choice, and all its points: each is as far from every other one."""
    choices = [round(0.1 + 0.8 * place / count, 6) for place in range(count)]
    return {"augment.threshold": {"type": "categorical", "choices": choices}}, [
        {"augment.threshold": choice} for choice in choices
    ]


def drawn_values(
    rng: np.random.Generator,
    true: np.ndarray,
    seeds: int,
    epochs: int,
    error: float,
    moved: float,
    *,
    rung_error: float = 0.0,
) -> np.ndarray:
    """[C, S, E] of a mixed model with these standard deviations; an epoch before the last one has .01 less for each
    epoch that is missing, and an error of its own.
    """
    ends = true[:, None] + rng.normal(0, moved, seeds)[None] + rng.normal(0, error, (len(true), seeds))
    early = rng.normal(0, rung_error, (len(true), seeds, epochs))
    early[..., -1] = 0.0
    return ends[..., None] - 0.01 * np.arange(epochs - 1, -1, -1) + early
