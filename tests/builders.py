"""Search spaces and manifests for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sctune.config import Task, TrialConfig, load_profile
from sctune.search.space.definition import Space, load_space
from sctune.search.study.manifest import DataSpec, SchedulerSpec, SelectionSpec, StudyManifest

FLAT = {
    "augment.threshold": {"type": "float", "low": 0.1, "high": 0.9},
    "model.patch_count": {"type": "int", "low": 2, "high": 6},
}
FEW = {
    "augment.threshold": {"values": [0.2, 0.4, 0.6]},
    "model.patch_count": {"type": "int", "low": 2, "high": 3},
}
ANYWHERE = {"model.patch_place": "grid2d"}
"""For `set` of a space of up to six patches: the five positions on the diagonal are too few for them."""


def make_space(folder: Path, base: TrialConfig | None = None, **tree: Any) -> Space:
    """The tree as a file of a search space in `folder`, and loaded from there; base: profile cpu if not given."""
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return load_space(file, load_profile("cpu") if base is None else base)


def make_manifest(space: Space, **changes: Any) -> StudyManifest:
    """A study of four random trials of the space, of one task; `changes` are other values of the fields."""
    fields: dict[str, Any] = {
        "name": "s",
        "created": "2026-01-01T00:00:00+00:00",
        "space": space.to_dict(),
        "profile": "cpu",
        "config": space.base.model_dump(),
        "tasks": (Task(),),
        "sampler": "random",
        "scheduler": SchedulerSpec(name="asha"),
        "trials": 4,
        "selection": SelectionSpec(mode="extra"),
        "data": DataSpec(name="none", digest="0"),
        "storage_path": "/none",
        "tracking_uri": "none",
    }
    return StudyManifest(**fields | changes)
