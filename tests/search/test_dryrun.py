"""The dry run times what takes longest, and says what that was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sctune.config import load_profile
from sctune.search.cluster import Resources
from sctune.search.dryrun import DryRun, _probe, dearest_point
from sctune.search.options import SearchOptions
from sctune.search.plan import make_plan
from sctune.search.space import Space, load_space

HEADS = {"values": ["single_head", "two_head_patch", "four_head", "two_head_latent"]}
KINDS = {"values": ["none", "cutmix", "saliencycut"]}


def make_space(folder: Path, **content: Any) -> Space:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_space(path, load_profile("cpu"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # SaliencyCut before the heads: no column of table 4 has it with four heads
        ("heads", {"model.heads": "two_head_latent", "augment.kind": "saliencycut"}),
        ("method", {"model.heads": "four_head", "augment.kind": "saliencycut", "model.reference_count": 10}),
        ("threshold_patch", {"model.patch_count": 6}),
        ("top_k", {"model.top_k": 0.02}),
    ],
)
def test_shipped_spaces_are_timed_at_their_dearest_point(name: str, expected: dict[str, Any]) -> None:
    point = dearest_point(load_space(name, load_profile("cpu")))
    assert {key: point[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (
            {"model.heads": HEADS, "augment.kind": {"values": ["none", "cutmix"]}},
            {"model.heads": "four_head", "augment.kind": "cutmix"},
        ),
        ({"augment.kind": KINDS}, {"augment.kind": "saliencycut"}),
        (
            {"data.image_size": {"values": [96, 160, 128]}, "model.heads": HEADS},
            {"data.image_size": 160, "model.heads": "four_head"},
        ),
        ({"budget.batch_size": {"values": [9, 18]}, "model.n_scales": {"values": [1, 2]}},
         {"budget.batch_size": 18, "model.n_scales": 2}),
    ],
)  # fmt: skip
def test_what_makes_a_step_long(tmp_path: Path, parameters: dict[str, Any], expected: dict[str, Any]) -> None:
    # small maps hold too few patches on the diagonal
    space = make_space(tmp_path, parameters=parameters, set={"model.patch_place": "grid2d"})
    assert dearest_point(space) == expected


def test_variants_are_ranked_by_what_they_set(tmp_path: Path) -> None:
    variants = {
        "devnet": {"model.heads": "single_head", "augment.kind": "none"},
        "own": {},
        "dra": {"model.heads": "four_head", "augment.kind": "cutmix"},
    }
    assert dearest_point(make_space(tmp_path, variants=variants)) == {"variant": "own"}


def test_the_probe_trains_the_point_that_the_dry_run_names(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sctune.train import trainer

    made = []

    class Seen(trainer.Trainer):
        def __init__(self, config: Any, task: Any, *, split: Any) -> None:
            made.append(config)
            super().__init__(config, task, split=split)

    monkeypatch.setattr(trainer, "Trainer", Seen)
    options = SearchOptions(space="heads", name="s", profile="smoke", data=str(image_folder), selection="extra")
    plan = make_plan(options, has_gpu=False)
    point = dearest_point(plan.space)
    step, scoring, size = _probe(plan, point)
    assert [(config.model.heads, config.augment.kind) for config in made] == [("two_head_latent", "saliencycut")]
    assert min(step, scoring, size) > 0
    run = DryRun(plan, Resources(2, 0, 1, 0, 2, 1), point, step, step, 90.0, size, size)
    assert any(line.endswith(", timed at model.heads=two_head_latent, augment.kind=saliencycut") for line in run.lines)
    assert any(line.startswith("expected time: about ") for line in run.lines)
    assert run.to_dict()["timed"] == point
