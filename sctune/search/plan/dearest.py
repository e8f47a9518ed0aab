"""The points of a space that cost most: which to try before a search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sctune.backbones.registry import backbone_entry
from sctune.config import TrialConfig
from sctune.search.space.definition import Space, Values

_HEADS = ("single_head", "two_head_patch", "two_head_latent", "four_head")
"""By the seconds of a step; the last two pass reference images too."""


def dearest_points(space: Space) -> dict[str, Values]:
    """Method -> the extreme point to time: whose epoch takes longest by its configuration, the first of equal ones."""
    found: dict[str, tuple[tuple[Any, ...], Values]] = {}
    for point in space.probe_points():
        config = space.config(point)
        name, cost = config.method.name, epoch_cost(config)
        if name not in found or cost > found[name][0]:
            found[name] = cost, point
    return {name: point for name, (_, point) in found.items()}


def epoch_cost(chosen: TrialConfig) -> tuple[Any, ...]:
    """What makes an epoch long, the heaviest first: an order, not a number of seconds.

    Pixels of an epoch, times what the method's own fields make of them; the larger backbone, and how far it is run and
    trained; turns of what is scored; the density beside the heads; SaliencyCut, which adds a forward and a backward
    pass; heads, those with references first; then how many references and patches they take.
    """
    config = chosen.flat()
    pixels = config["budget.iterations"] * config["budget.batch_size"] * config["data.image_size"] ** 2
    return (
        pixels * chosen.entry.cost(chosen),
        config["model.n_scales"],
        backbone_entry(config["model.backbone"]).cost,
        config["model.tap"] == "deep",
        -config["model.freeze"],
        config["score.turns"],
        *_density_cost(config),
        {"none": 0, "saliencycut": 2}.get(config["augment.kind"], 1),
        _HEADS.index(config["model.heads"]),
        config["model.reference_count"],
        config["model.patch_count"],
    )


def _density_cost(config: Mapping[str, Any]) -> tuple[int, ...]:
    """A frozen copy is fitted once, the trained trunk after every epoch; cells, and each kind of normal, cost more."""
    head = config["model.normal_head"]
    if head == "mlp":
        return 0, 0, 0
    return (
        {"frozen": 1, "trained": 2}[config["model.density_trunk"]],
        {"pooled": 0, "cells": 1}[config["model.density_features"]],
        config["model.density_components"] if head == "mixture" else 1,
    )
