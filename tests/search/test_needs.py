"""Parameters that mean nothing without another are drawn only with it, without the space saying so."""

from pathlib import Path

import pytest
import yaml

from sctune.config import FIELD_NAMES, TrialConfig, load_profile
from sctune.errors import SpaceError
from sctune.search.needs import NEEDS
from sctune.search.space import Space, load_space


def make_space(folder: Path, parameters: dict, overrides: dict | None = None, **more: object) -> Space:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({"parameters": parameters, **more}, sort_keys=False))
    return load_space(path, load_profile("cpu"), overrides)


def test_patch_count_follows_the_patch_head_wherever_it_is_declared(tmp_path: Path) -> None:
    space = make_space(
        tmp_path,
        {
            "model.patch_count": {"values": [2, 4]},
            "model.reference_count": {"values": [1, 5]},
            "augment.threshold": {"values": [0.2, 0.4]},
            "model.heads": {"values": ["two_head_patch", "two_head_latent", "single_head"]},
            "augment.kind": {"values": ["saliencycut", "cutmix"]},
        },
    )
    points = list(space.points())
    assert len(points) == space.size() == (2 + 2 + 1) * (2 + 1)
    for point in points:
        assert ("model.patch_count" in point) == (point["model.heads"] == "two_head_patch")
        assert ("model.reference_count" in point) == (point["model.heads"] == "two_head_latent")
        assert ("augment.threshold" in point) == (point["augment.kind"] == "saliencycut")


def test_with_a_fixed_head_the_parameter_is_never_drawn(tmp_path: Path) -> None:
    parameters = {"model.patch_count": {"values": [2, 4]}, "model.top_k": {"values": [0.1, 0.2, 0.3]}}
    space = make_space(tmp_path, parameters, {"model.heads": "four_head"})
    assert [set(point) for point in space.points()] == [{"model.top_k"}] * 3
    with pytest.raises(SpaceError, match="nothing is searched"):
        make_space(tmp_path, {"model.patch_count": {"values": [2, 4]}}, {"model.heads": "four_head"})


def test_what_the_drawn_values_can_never_meet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"augment\.cutpaste\.when\.augment\.kind: 'cutpaste' is never drawn"):
        make_space(
            tmp_path,
            {"augment.kind": {"values": ["saliencycut", "cutmix"]}, "augment.cutpaste": {"values": ["scar", "union"]}},
        )


def test_needs_see_what_variants_set(tmp_path: Path) -> None:
    space = make_space(
        tmp_path,
        {"augment.threshold": {"values": [0.2, 0.4]}},
        variants={"own": {"augment.kind": "saliencycut"}, "dra": {"augment.kind": "cutmix"}},
    )
    assert [(p["variant"], p.get("augment.threshold")) for p in space.points()] == [
        ("own", 0.2),
        ("own", 0.4),
        ("dra", None),
    ]


def test_own_condition_on_the_same_field_wins(tmp_path: Path) -> None:
    space = make_space(
        tmp_path,
        {
            "augment.kind": {"values": ["saliencycut", "cutmix", "cutpaste"]},
            "augment.refresh": {"values": ["iteration", "epoch"], "when": {"augment.kind": "cutmix"}},
        },
    )
    assert {p["augment.kind"] for p in space.points() if "augment.refresh" in p} == {"cutmix"}
    assert space.size() == 4


@pytest.mark.parametrize("field", sorted(NEEDS))
def test_needs_name_fields_and_values_that_exist(field: str) -> None:
    assert field in FIELD_NAMES
    for other, wanted in NEEDS[field]:
        for value in wanted:
            assert TrialConfig().override({other: value, "model.patch_place": "grid2d"}).flat()[other] == value


def test_the_space_method_draws_only_what_counts() -> None:
    space = load_space("method", load_profile("cpu"))
    active = {
        (heads, kind): {
            parameter.name
            for parameter in space.parameters
            if space.is_active(parameter, {"model.heads": heads, "augment.kind": kind})
        }
        for heads in ("two_head_patch", "four_head", "single_head")
        for kind in ("saliencycut", "cutpaste", "none")
    }
    common = {"model.heads", "augment.kind", "model.top_k"}
    assert active["two_head_patch", "saliencycut"] == common | {"augment.threshold", "model.patch_count"}
    assert active["four_head", "cutpaste"] == common | {"augment.cutpaste", "model.reference_count"}
    assert active["single_head", "none"] == common


def test_the_space_heads_has_the_five_columns_of_table_4() -> None:
    space = load_space("heads", load_profile("cpu"))
    columns = [(c.model.heads, c.augment.kind) for c in map(space.config, space.points())]
    assert columns == [
        ("four_head", "cutmix"),
        ("two_head_latent", "cutmix"),
        ("two_head_latent", "saliencycut"),
        ("two_head_patch", "cutmix"),
        ("two_head_patch", "saliencycut"),
    ]
