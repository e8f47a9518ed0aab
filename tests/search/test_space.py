"""Search spaces: what is refused, what is drawn, how points are counted and written down."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from sctune.config import TrialConfig, load_profile, profile_names
from sctune.errors import ConfigError, SpaceError
from sctune.methods.named import method_values
from sctune.search.space.definition import Space, load_space
from sctune.search.space.named import shipped_spaces
from sctune.search.space.parameter import Range

CONDITIONAL = {
    "augment.kind": {"type": "categorical", "choices": ["saliencycut", "none"]},
    "augment.threshold_mode": {
        "type": "categorical",
        "choices": ["value", "area"],
        "when": {"augment.kind": "saliencycut"},
    },
    "augment.threshold": {
        "type": "float",
        "low": 0.1,
        "high": 0.3,
        "step": 0.1,
        "when": {"augment.kind": ["saliencycut"], "augment.threshold_mode": "area"},
    },
    "model.patch_count": {"type": "int", "low": 2, "high": 3},
}


def write_space(tmp_path: Path, **content: Any) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def make_space(tmp_path: Path, parameters: dict[str, Any], **content: Any) -> Space:
    return load_space(write_space(tmp_path, parameters=parameters, **content), load_profile("cpu"))


def draw(space: Space, n: int) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.suggest(study.ask()) for _ in range(n)]


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_all_shipped_spaces_are_found() -> None:
    assert set(shipped_spaces()) == {"threshold_patch", "grid_size", "top_k", "full", "fig7a", "heads", "pseudo"}


@pytest.mark.parametrize("profile", profile_names())
@pytest.mark.parametrize("name", sorted(shipped_spaces()))
def test_no_shipped_space_holds_an_infeasible_point(name: str, profile: str) -> None:
    space = load_space(name, load_profile(profile))
    for values in [*draw(space, 150), *space.probe_points(), *space.start]:
        flat = space.config(values).flat()
        assert {key: flat[key] for key in values} == values


def test_threshold_patch_is_as_documented() -> None:
    space = load_space("threshold_patch", load_profile("paper"))
    assert space.base.model.patch_place == "grid2d"
    assert space.start == ({"augment.threshold": 0.4, "model.patch_count": 4},)
    assert space.distributions == {
        "augment.threshold": optuna.distributions.FloatDistribution(0.1, 0.9),
        "model.patch_count": optuna.distributions.IntDistribution(2, 6),
    }


def test_fig7a_is_a_grid_of_seven_thresholds() -> None:
    space = load_space("fig7a", load_profile("cpu"))
    assert space.is_grid
    assert [point["augment.threshold"] for point in space.points()] == [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


@pytest.mark.parametrize("name", ["fig7a", "heads"])
def test_what_repeats_the_paper_has_no_density(name: str) -> None:
    for profile in ("cpu", "gpu"):
        base = load_profile(profile)
        assert base.model.normal_head == "mixture"
        assert load_space(name, base).base.model.normal_head == "mlp"
        assert load_space(name, base, {"model.normal_head": "mixture"}).base.model.normal_head == "mixture"


def test_command_line_wins_over_the_fixed_values() -> None:
    space = load_space("fig7a", load_profile("cpu"), {"augment.threshold_mode": "area", "optim.lr": 1e-3})
    assert space.base.augment.threshold_mode == "area"
    assert space.base.optim.lr == 1e-3


def test_infeasible_patch_count_names_map_positions_and_patches(tmp_path: Path) -> None:
    parameters = {"model.patch_count": {"type": "int", "low": 2, "high": 6}}
    with pytest.raises(SpaceError, match=r"mine\.yaml.*S=7 cells with O=4 diag positions, and P=5"):
        load_space(write_space(tmp_path, parameters=parameters), load_profile("paper"))


def test_joint_infeasibility_is_found_where_each_value_alone_is_fine(tmp_path: Path) -> None:
    parameters = {
        "data.image_size": {"type": "ordinal", "choices": [64, 160]},
        "augment.grid_size": {"type": "ordinal", "choices": [8, 48]},
        "model.patch_count": {"values": [2]},
        "model.tap": {"values": ["middle"]},
    }
    with pytest.raises(SpaceError, match=r"augment.grid_size=48"):
        make_space(tmp_path, parameters)


def test_pairs_are_checked_where_the_joint_corners_are_too_many(tmp_path: Path) -> None:
    many = {
        name: {"type": "ordinal", "choices": [0.1 + 0.01 * i for i in range(30)]}
        for name in ("augment.threshold", "model.top_k", "optim.gamma", "loss.margin")
    }
    late = {
        "data.image_size": {"type": "ordinal", "choices": [160, 32]},
        "augment.kind": {"values": ["none", "saliencycut"]},
        "augment.grid_size": {"type": "int", "low": 2, "high": 40, "when": {"augment.kind": "saliencycut"}},
        "model.patch_count": {"values": [2]},
        "model.tap": {"values": ["middle"]},
        "model.patch_size": {"values": ["half"]},
    }
    with pytest.raises(SpaceError, match=r"augment.grid_size=17: at most half of data.image_size=32"):
        make_space(tmp_path, many | late)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"parameters": {"augment.treshold": {"type": "float", "low": 0, "high": 1}}},
            "did you mean 'augment.threshold'",
        ),
        ({"parameters": {"data.known_class": {"values": ["a"]}}}, "data.known_class belongs to the task"),
        ({"parameters": {"optim.lr": {"values": [1e-3]}}, "set": {"seed": 3}}, "set: seed belongs to the task"),
        ({"parameters": {"optim.lr": {"type": "float", "low": 2, "high": 1}}}, "optim.lr: low 2 is above high 1"),
        ({"parameters": {"optim.lr": {"type": "flot", "low": 0, "high": 1}}}, "did you mean 'float'"),
        ({"parameters": {"optim.lr": {"type": "float", "low": 0, "hihg": 1}}}, "did you mean 'high'"),
        ({"parameters": {"optim.lr": {"type": "float", "low": 0, "high": 1, "log": True}}}, "log needs low above 0"),
        (
            {"parameters": {"optim.lr": {"type": "float", "low": 0.1, "high": ".inf"}}},
            "optim.lr.high: must be a finite",
        ),
        ({"parameters": {"optim.lr": {"type": "float", "low": 0.1, "high": 0.2, "step": 0}}}, "step: must be above 0"),
        ({"parameters": {"model.patch_count": {"type": "int", "low": 2.5, "high": 4}}}, "must be an integer, got 2.5"),
        ({"parameters": {"model.patch_count": {"type": "float", "low": 2.5, "high": 4}}}, "model.patch_count=2.5"),
        ({"parameters": {"optim.lr": {"type": "float", "low": 0.5, "high": 2}}}, "optim.lr=2.0"),
        ({"parameters": {"optim.lr": {"values": []}}}, "must be a list of values"),
        ({"parameters": {"optim.lr": {"values": [0.1, 0.1]}}}, "0.1 is listed twice"),
        ({"parameters": {"optim.lr": {"type": "categorical", "choices": [[1]]}}}, "not a plain finite value"),
        ({"parameters": {"optim.lr": 3}}, "write {type: float"),
        ({"parameters": {}}, "at least one"),
        ({"parameters": [1]}, "must hold keys and values"),
        ({"parameter": {"optim.lr": {"values": [0.1]}}}, "did you mean 'parameters'|at least one"),
        ({"parameters": {"optim.lr": {"values": [0.1]}}, "set": {"optim.gama": 1}}, "did you mean 'optim.gamma'"),
        ({"parameters": {"optim.lr": {"values": [0.1]}}, "format_version": 2}, "format_version 2"),
        (
            {"parameters": {"optim.lr": {"values": [0.1]}}, "start": [{"optim.lr": 0.2}]},
            r"start\[0\]: optim.lr=0.2 is out",
        ),
        ({"parameters": {"optim.lr": {"values": [0.1]}}, "start": [{"optim.gamma": 0.2}]}, "not a parameter"),
        ({"parameters": {"optim.lr": {"values": [0.1], "when": {"optim.gama": 1}}}}, "did you mean 'optim.gamma'"),
        ({"parameters": {"optim.lr": {"values": [0.1], "when": {"augment.kind": "cut"}}}}, "when.augment.kind"),
        ({"parameters": {"optim.lr": {"values": [0.1], "when": {"augment.kind": "none"}}}}, "nothing is searched"),
        ({"parameters": {"optim.lr": {"values": [0.1], "when": {"optim.lr": 0.1}}}}, "declared later or itself"),
    ],
)
def test_mistakes_name_the_file_and_the_key(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    file = write_space(tmp_path, **content)
    with pytest.raises(SpaceError, match=message) as caught:
        load_space(file, load_profile("cpu"))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "way"), [("kdad_lite0", "take --space kdad"), ("dra", "take another one of `sctune spaces`")]
)
def test_a_method_that_the_space_cannot_vary_is_told_where_to_go(method: str, way: str) -> None:
    base = load_profile("cpu").override(method_values(method, "cpu"))
    with pytest.raises(SpaceError, match=rf"threshold_patch.*\(method .*\), so nothing is searched; {way}$"):
        load_space("threshold_patch", base)


def test_condition_on_what_is_never_drawn_is_refused(tmp_path: Path) -> None:
    late = CONDITIONAL | {"augment.threshold": {"values": [0.4], "when": {"augment.threshold_mode": "aera"}}}
    with pytest.raises(SpaceError, match="'aera' is never drawn; it is one of value, area"):
        make_space(tmp_path, late)
    continuous = {
        "optim.lr": {"type": "float", "low": 0.1, "high": 0.2},
        "optim.gamma": {"values": [0.5], "when": {"optim.lr": 0.1}},
    }
    with pytest.raises(SpaceError, match=r"optim.lr is continuous"):
        make_space(tmp_path, continuous)


def test_start_point_with_an_inactive_parameter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"start\[0\]: augment.threshold is not active"):
        make_space(tmp_path, CONDITIONAL, start=[{"augment.kind": "none", "augment.threshold": 0.2}])
    space = make_space(tmp_path, CONDITIONAL, start=[{"model.patch_count": 3}])
    assert space.start == ({"model.patch_count": 3},)


def test_set_option_of_a_varied_or_task_field_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"--set augment.threshold=0.3: .*varies it"):
        load_space("fig7a", load_profile("cpu"), {"augment.threshold": 0.3})
    with pytest.raises(SpaceError, match=r"--set seed=1: it belongs to the task"):
        load_space("fig7a", load_profile("cpu"), {"seed": 1})


def test_unknown_name_gives_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="did you mean 'threshold_patch'"):
        load_space("treshold_patch", load_profile("cpu"))
    with pytest.raises(SpaceError, match="cannot read"):
        load_space(str(tmp_path / "none.yaml"), load_profile("cpu"))


def test_conditional_points_are_counted_and_listed(tmp_path: Path) -> None:
    space = make_space(tmp_path, CONDITIONAL)
    points = list(space.points())
    # value: 2 patch counts; area: 3 thresholds x 2; none: 2
    assert space.size() == len(points) == 2 + 6 + 2
    assert len({space.key(point) for point in points}) == 10
    assert points[0] == {"augment.kind": "saliencycut", "augment.threshold_mode": "value", "model.patch_count": 2}
    assert points[4] == {
        "augment.kind": "saliencycut",
        "augment.threshold_mode": "area",
        "augment.threshold": 0.2,
        "model.patch_count": 2,
    }
    assert points[-1] == {"augment.kind": "none", "model.patch_count": 3}
    assert {space.key(values) for values in draw(space, 300)} == {space.key(point) for point in points}


def test_suggest_keeps_the_order_of_declaration_and_only_active_parameters(tmp_path: Path) -> None:
    space = make_space(tmp_path, CONDITIONAL)
    for values in draw(space, 50):
        assert list(values) == [name for name in CONDITIONAL if name in values]
        assert ("augment.threshold_mode" in values) == (values["augment.kind"] == "saliencycut")
        assert ("augment.threshold" in values) == (values.get("augment.threshold_mode") == "area")


def test_stepped_floats_are_free_of_rounding_and_share_a_key(tmp_path: Path) -> None:
    space = make_space(tmp_path, {"augment.threshold": {"type": "float", "low": 0.1, "high": 0.95, "step": 0.1}})
    assert [point["augment.threshold"] for point in space.points()] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert space.key({"augment.threshold": 0.1 + 0.2}) == space.key({"augment.threshold": 0.3})
    assert space.decode({"augment.threshold": 0.1 + 0.2}) == {"augment.threshold": 0.3}
    assert {values["augment.threshold"] for values in draw(space, 200)} == {
        p["augment.threshold"] for p in space.points()
    }


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({"low": 0.1, "high": 0.9}, "a number in [0.1, 0.9]"),
        ({"low": 0.1, "high": 0.9, "step": 0.4}, "a number in [0.1, 0.9] by steps of 0.4: 0.1, 0.5, 0.9"),
        (
            {"low": 0.1, "high": 0.9, "step": 0.3},
            "a number in [0.1, 0.9] by steps of 0.3: 0.1, 0.4, 0.7 (0.9 is never tried)",
        ),
        (
            {"low": 0.1, "high": 0.9, "step": 0.03},
            "a number in [0.1, 0.9] by steps of 0.03: 0.1, 0.13, ... 0.88 (27 values) (0.9 is never tried)",
        ),
    ],
)
def test_a_stepped_range_shows_the_values_that_are_tried(tmp_path: Path, body: dict[str, Any], shown: str) -> None:
    space = make_space(tmp_path, {"augment.threshold": {"type": "float", **body}})
    assert space.parameters[0].describe() == shown
    assert space.notes == ()


def test_a_step_that_leaves_one_value_is_said(tmp_path: Path) -> None:
    parameters = {
        "augment.threshold": {"type": "float", "low": 0.1, "high": 0.9, "step": 1.0},
        "model.patch_count": {"type": "int", "low": 2, "high": 4, "step": 2},
    }
    (note,) = make_space(tmp_path, parameters).notes
    assert note.startswith(
        "augment.threshold: a step of 1 leaves one value in [0.1, 0.9], which is 0.1; give a smaller"
    )


def test_millions_of_values_are_counted_without_making_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {
        "augment.threshold": {"type": "float", "low": 0.1, "high": 0.9, "step": 3.2e-8},
        "model.patch_count": {"type": "int", "low": 2, "high": 4, "when": {"augment.threshold": [0.1, 0.9]}},
    }
    space = make_space(tmp_path, parameters)
    made = 0
    make = Range._at

    def counted(self: Range, index: int) -> Any:
        nonlocal made
        made += 1
        return make(self, index)

    monkeypatch.setattr(Range, "_at", counted)
    assert space.size() == 2 * 3 + 24_999_999
    first = [point["augment.threshold"] for point in itertools.islice(space.points(), 5)]
    assert first == [0.1, 0.1, 0.1, 0.100000032, 0.100000064]
    assert made < 100


def test_ordered_choices_are_indices_inside_and_values_outside(tmp_path: Path) -> None:
    space = make_space(tmp_path, {"augment.grid_size": {"type": "ordinal", "choices": [4, 12, 8]}})
    assert space.distributions["augment.grid_size"] == optuna.distributions.IntDistribution(0, 2)
    assert space.encode({"augment.grid_size": 8}) == {"augment.grid_size": 2}
    assert space.decode({"augment.grid_size": 1}) == {"augment.grid_size": 12}


def test_text_numbers_of_yaml_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "parameters:\n  optim.lr: {type: float, low: 5e-5, high: 1e-3, log: true}\nset: {optim.gamma: 1e-1}\n"
    )
    space = load_space(file, load_profile("cpu"))
    assert space.distributions["optim.lr"] == optuna.distributions.FloatDistribution(5e-5, 1e-3, log=True)
    assert space.base.optim.gamma == 0.1


def test_stored_space_is_the_same_space(tmp_path: Path) -> None:
    space = make_space(tmp_path, CONDITIONAL, set={"optim.lr": 0.01}, start=[{"model.patch_count": 3}])
    again = Space.from_dict(json.loads(json.dumps(space.to_dict())), TrialConfig.load(space.base.model_dump()))
    assert again.parameters == space.parameters
    assert again.start == space.start
    assert again.base == space.base
    assert again.name == "mine"


def test_size_of_a_large_space_is_counted_without_listing_it(tmp_path: Path) -> None:
    sizes = {"type": "float", "low": 0.001, "high": 1, "step": 0.001}
    space = make_space(tmp_path, {"optim.gamma": sizes, "model.top_k": sizes, "optim.lr": sizes})
    assert space.size() == 1000**3
    space = make_space(tmp_path, {"optim.gamma": sizes, "model.top_k": {"type": "float", "low": 0.1, "high": 0.2}})
    assert space.size() is None


NEVER_TRAINED: dict[str, dict[str, Any]] = {
    "heads": {
        "parameters": {
            "model.heads": {"values": ["two_head_latent", "four_head"]},
            "data.image_size": {"values": [128, 160]},
        },
        "set": {"model.n_scales": 2, "model.tap": "deep", "augment.kind": "cutmix"},
    },
    "cells": {
        "parameters": {"augment.grid_size": {"values": [8, 12]}},
        "set": {"data.image_size": 32, "model.heads": "four_head"},
    },
    "patches": {
        "parameters": {"model.patch_count": {"values": [2]}, "model.top_k": {"values": [0.1, 0.2]}},
        "set": {"model.tap": "deep", "model.patch_place": "diag"},
    },
    "not every point": {
        "parameters": {
            "augment.kind": {"values": ["saliencycut", "none"]},
            "augment.grid_size": {"values": [8, 12], "when": {"augment.kind": "saliencycut"}},
        },
        "set": {"data.image_size": 32, "model.heads": "four_head"},
    },
    "variants": {
        "variants": {"dra": {"model.heads": "four_head"}, "devnet": {"model.heads": "single_head"}},
        "set": {"model.n_scales": 2, "model.tap": "deep", "augment.kind": "cutmix"},
    },
}


@pytest.mark.parametrize("case", NEVER_TRAINED)
def test_what_no_point_trains_with_refuses_no_space(tmp_path: Path, case: str) -> None:
    content = NEVER_TRAINED[case]
    base = load_profile("cpu")
    with pytest.raises(ConfigError):
        base.override(content["set"])
    space = load_space(write_space(tmp_path, **content), base)
    fixed = base.flat() | content["set"]
    for point in space.points():
        trained = space.config(point).flat()
        set_by_point = space.assignments(point)
        assert trained == fixed | set_by_point
    again = Space.from_dict(json.loads(json.dumps(space.to_dict())), TrialConfig.load(space.base.model_dump()))
    assert again.parameters == space.parameters
    assert list(again.points()) == list(space.points())


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"model.tap": "deap"}, r"mine.yaml: set: model.tap='deap': input should be 'deep' or 'middle'"),
        ({"model.n_scales": 3}, r"mine.yaml: set: model.n_scales=3: "),
        ({"model.tpa": "deep"}, r"mine.yaml: set: unknown configuration key 'model.tpa'; did you mean 'model.tap'"),
        ({"model.heads": "two_head_patch"}, "set: model.patch_count=4: the 160 px scale gives a map of S=5"),
    ],
)
def test_fixed_values_are_refused_alone_and_where_no_point_goes_with_them(
    tmp_path: Path, fixed: dict[str, Any], message: str
) -> None:
    values = {"model.n_scales": 2, "model.tap": "deep", "model.heads": "four_head"} | fixed
    with pytest.raises(SpaceError, match=message):
        make_space(tmp_path, {"model.top_k": {"values": [0.1, 0.2]}}, set=values)


def test_points_that_do_not_go_with_the_fixed_values_are_refused_by_name(tmp_path: Path) -> None:
    """The base takes the first point's head; the patch head beside it is still one of the space's points."""
    parameters = {"model.heads": {"values": ["four_head", "two_head_patch"]}}
    with pytest.raises(SpaceError, match=r"impossible point \(model.heads=two_head_patch\): model.patch_count=4"):
        make_space(tmp_path, parameters, set={"model.n_scales": 2, "model.tap": "deep"})
