"""What each augmentation does to images of a data set, for a picture of them side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from sctune.config import AugmentConfig, TrialConfig
from sctune.data.catalog import open_dataset
from sctune.errors import ConfigError, nearest
from sctune.train.gallery import PseudoExample, pseudo_examples
from sctune.train.trainer import Trainer

KINDS = tuple(kind for kind in get_args(AugmentConfig.model_fields["kind"].annotation) if kind != "none")
"""Makers of pseudo anomalies."""

_CUTPASTE = ("normal", "scar")


def augmentation_examples(
    config: TrialConfig, kinds: Sequence[str], values: Mapping[str, Any], count: int
) -> tuple[dict[str, list[PseudoExample]], str | None]:
    """Name of each augmentation -> at most `count` examples on the same held-out normal images; and the attribution.

    kinds: of KINDS, none for all; values: dotted configuration values for all of them (not augment.kind). Kinds that
    do the very same share one entry. The detector is not trained. Raises ConfigError for an unknown kind, DataError
    or WeightsError as a training would.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"--kind {kind!r} is no augmentation; {nearest(kind, KINDS)}")
    if "augment.kind" in values:
        raise ConfigError("augment.kind is chosen with --kind here, not with --set")
    base = config.override(values)
    data = open_dataset(base.data.source, base.data.category, base.data.group)
    # selection=test of a profile would show images of the test pool
    changes: dict[str, Any] = {"data.selection": "auto"}
    if not data.anomalies:
        changes["data.setting"] = "anomaly-free"
    base = base.override(changes)
    found: dict[str, list[PseudoExample]] = {}
    for kind in dict.fromkeys(kinds or KINDS):
        for name, change in _variants(kind, values).items():
            examples = pseudo_examples(Trainer(base.override(change)), count)
            same = next((other for other, rows in found.items() if _equal(rows, examples)), None)
            found[name if same is None else f"{same} = {name}"] = examples if same is None else found.pop(same)
    return found, data.attribution


def _variants(kind: str, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> configuration of what is shown of a kind: CutPaste's two, where none of them is asked for."""
    if kind != "cutpaste" or "augment.cutpaste" in values:
        return {kind: {"augment.kind": kind}}
    return {f"cutpaste {part}": {"augment.kind": kind, "augment.cutpaste": part} for part in _CUTPASTE}


def _equal(first: Sequence[PseudoExample], second: Sequence[PseudoExample]) -> bool:
    return all(np.array_equal(a.result, b.result) for a, b in zip(first, second, strict=True))
