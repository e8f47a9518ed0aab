"""Variants: one searched choice that sets several fields; what is refused, listed, drawn and expanded."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from sctune.config import FIELD_NAMES, TrialConfig, load_profile
from sctune.errors import SpaceError
from sctune.search.space.definition import Space, load_space

METHODS: dict[str, dict[str, Any]] = {
    "saliencycut": {"model.heads": "two_head_patch", "augment.kind": "saliencycut"},
    "dra": {"model.heads": "four_head", "augment.kind": "cutmix"},
    "devnet": {"model.heads": "single_head", "augment.kind": "none", "data.balance": 0.5},
}
THRESHOLD = {"augment.threshold": {"values": [0.2, 0.4], "when": {"variant": "saliencycut"}}}


def write_space(tmp_path: Path, **content: Any) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def make_space(tmp_path: Path, profile: str = "cpu", **content: Any) -> Space:
    return load_space(write_space(tmp_path, **content), load_profile(profile))


def test_variants_alone_are_a_grid_in_the_order_of_the_file(tmp_path: Path) -> None:
    space = make_space(tmp_path, variants=METHODS)
    assert space.is_grid
    assert space.size() == 3
    assert list(space.points()) == [{"variant": "saliencycut"}, {"variant": "dra"}, {"variant": "devnet"}]
    assert space.distributions == {
        "variant": optuna.distributions.CategoricalDistribution(("saliencycut", "dra", "devnet"))
    }
    assert [space.config(point).model.heads for point in space.points()] == [
        "two_head_patch", "four_head", "single_head",
    ]  # fmt: skip


def test_expansion_sets_the_fields_of_the_variant_and_keeps_the_base_elsewhere(tmp_path: Path) -> None:
    space = make_space(tmp_path, variants=METHODS, parameters=THRESHOLD, set={"data.balance": 0.6})
    point = {"variant": "saliencycut", "augment.threshold": 0.2}
    assert space.assignments(point) == METHODS["saliencycut"] | {"augment.threshold": 0.2}
    assert space.assignments({"variant": "devnet"}) == METHODS["devnet"]
    assert space.assignments({"augment.threshold": 0.2}) == {"augment.threshold": 0.2}
    for name, fields in METHODS.items():
        flat = space.config({"variant": name}).flat()
        assert flat == load_profile("cpu").flat() | {"data.balance": 0.6} | fields
    assert set(space.assignments(point)) <= set(FIELD_NAMES)


def test_conditions_look_at_the_variant_and_at_what_it_sets(tmp_path: Path) -> None:
    space = make_space(
        tmp_path,
        variants=METHODS | {"cutout": {"augment.kind": "cutpaste"}},
        parameters={
            **THRESHOLD,
            # cutout keeps the base's two_head_patch
            "model.patch_count": {"values": [2, 3], "when": {"model.heads": "two_head_patch"}},
            "augment.grid_size": {"values": [8, 12], "when": {"augment.threshold": 0.4, "augment.kind": "saliencycut"}},
            "optim.lr": {"values": [1e-3], "when": {"variant": ["dra", "devnet"]}},
        },
    )
    points = list(space.points())
    # saliencycut: 0.2 with 2 patch counts, 0.4 with 2 x 2; cutout: 2; dra and devnet: 1 each
    assert space.size() == len(points) == 2 + 4 + 2 + 1 + 1
    assert points[0] == {"variant": "saliencycut", "augment.threshold": 0.2, "model.patch_count": 2}
    assert points[-3:] == [
        {"variant": "devnet", "optim.lr": 1e-3},
        {"variant": "cutout", "model.patch_count": 2},
        {"variant": "cutout", "model.patch_count": 3},
    ]
    assert len({space.key(point) for point in points}) == len(points)


def test_points_are_those_of_a_search_by_hand(tmp_path: Path) -> None:
    """All combinations, each reduced to what its own complete configuration switches on."""
    parameters: dict[str, dict[str, Any]] = {
        "optim.step_when": {"values": ["end", "start"], "when": {"augment.kind": ["saliencycut", "cutmix"]}},
        "optim.gamma": {"values": [0.2, 0.4, 0.6], "when": {"optim.step_when": "start"}},
        "model.top_k": {"values": [0.1, 0.2], "when": {"data.balance": 0.5}},
        "loss.margin": {"values": [3.0, 5.0], "when": {"model.heads": ["four_head", "single_head"]}},
    }
    space = make_space(tmp_path, variants=METHODS, parameters=parameters)
    expected = []
    for name, *drawn in itertools.product(METHODS, *(body["values"] for body in parameters.values())):
        flat = load_profile("cpu").override(METHODS[name]).flat()
        point: dict[str, Any] = {"variant": name}
        for (field, body), value in zip(parameters.items(), drawn, strict=True):
            conditions = body["when"].items()
            parents = [other for other, _ in conditions if other in parameters]
            met = all({**flat, **point}[other] in (ok if isinstance(ok, list) else [ok]) for other, ok in conditions)
            if met and all(other in point for other in parents):
                point[field] = value
        if point not in expected:
            expected.append(point)
    assert list(space.points()) == expected
    assert space.size() == len(expected)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn_keys = {space.key(space.suggest(study.ask())) for _ in range(400)}
    assert drawn_keys == {space.key(point) for point in expected}


def test_a_continuous_parameter_of_one_variant_makes_no_grid(tmp_path: Path) -> None:
    smooth = {"augment.threshold": {"type": "float", "low": 0.1, "high": 0.9, "when": {"variant": "saliencycut"}}}
    space = make_space(tmp_path, variants=METHODS, parameters=smooth)
    assert space.size() is None
    assert not space.is_grid


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"variants": {}}, "variants: at least one is needed"),
        ({"variants": None}, r"variants: write name: \{field: value, ...\} for each, got None"),
        ({"variants": ["dra"]}, "variants: write name"),
        ({}, r"parameters: at least one is needed \(or variants\)"),
        ({"variants": {"dra": None}}, r"variants.dra: write \{field: value, ...\}, got None"),
        ({"variants": {"dra": "four_head"}}, r"variants.dra: write .* got 'four_head'"),
        ({"variants": {False: {"model.top_k": 0.2}}}, r"variants: False is no name; .*quote"),
        ({"variants": {3: {"model.top_k": 0.2}}}, "variants: 3 is no name"),
        ({"variants": {"a b": {"model.top_k": 0.2}}}, "variants: 'a b' is no name"),
        (
            {"variants": {"dra": {"model.haeds": "four_head"}}},
            "variants.dra: .*'model.haeds'; did you mean 'model.heads'",
        ),
        ({"variants": {"dra": {"seed": 3}}}, "variants.dra: seed belongs to the task"),
        ({"variants": {"dra": {"data.setting": "hard"}}}, "variants.dra: data.setting belongs to the task"),
        ({"variants": {"a": {"model.heads": "five_head"}}}, r"impossible point \(variant=a\): model.heads='five_head'"),
        ({"variants": {"a": {"optim.lr": 2}}}, r"variant=a.*optim.lr=2"),
        ({"variants": {"a": {"optim.lr": [1e-3]}}}, r"variant=a.*optim.lr=\[0.001\]"),
        (
            {"variants": {"a": {"budget.epochs": 2}, "b": {"budget.epochs": 3}}},
            "budget.epochs is the same for all trials of a study, and a has 2, b 3; give it one value under set:",
        ),
        (
            {"variants": {"a": {"budget.epochs": 2}, "b": {"model.top_k": 0.2}}},
            "budget.epochs is the same for all trials of a study, and a has 2, b 6",
        ),
        (
            {"variants": METHODS, "parameters": {"data.balance": {"values": [0.5, 0.6]}}},
            "data.balance is varied under parameters and set by variant devnet; keep one",
        ),
        (
            {"variants": METHODS, "parameters": {"optim.lr": {"values": [0.1], "when": {"variant": "devnett"}}}},
            r"optim.lr.when.variant: 'devnett' is never drawn; it is one of saliencycut, dra, devnet",
        ),
        (
            {
                "variants": METHODS,
                "parameters": {"optim.lr": {"values": [0.1], "when": {"model.heads": "two_head_latent"}}},
            },
            "when.model.heads: no variant has 'two_head_latent'; it is one of two_head_patch, four_head, single_head",
        ),
        (
            {
                "variants": METHODS,
                "parameters": {"optim.lr": {"values": [0.1], "when": {"variant": "dra", "augment.kind": "none"}}},
            },
            "optim.lr.when: no variant meets all of its conditions",
        ),
        (
            {"parameters": {"optim.lr": {"values": [0.1], "when": {"variant": "dra"}}}},
            "when.variant: unknown configuration key",
        ),
        ({"variants": METHODS, "start": [{"variant": "drama"}]}, r"start\[0\]: variant='drama' is outside the space"),
        ({"variants": METHODS, "start": [{"model.heads": "four_head"}]}, "'model.heads' is not a parameter"),
        (
            {"variants": METHODS, "parameters": THRESHOLD, "start": [{"variant": "dra", "augment.threshold": 0.2}]},
            r"start\[0\]: augment.threshold is not active",
        ),
        (
            # the sampler may choose another variant for it
            {
                "variants": METHODS,
                "parameters": {"model.patch_count": {"values": [2, 3], "when": {"model.heads": "two_head_patch"}}},
                "start": [{"model.patch_count": 2}],
            },
            r"start\[0\]: model.patch_count is not active there",
        ),
        (
            {"variants": {"a": {"model.heads": "four_head"}, "b": {}, "c": {"model.heads": "two_head_patch"}}},
            "variants: b and c make the same configuration; take one out",
        ),
        ({"variant": METHODS}, "unknown key 'variant'; did you mean 'variants'"),
    ],
)
def test_mistakes_name_the_file_and_the_key(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    file = write_space(tmp_path, **content)
    with pytest.raises(SpaceError, match=message) as caught:
        load_space(file, load_profile("cpu"))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["model.heads", "data.balance", "variant"])
def test_set_option_of_what_the_variants_decide_is_refused(tmp_path: Path, field: str) -> None:
    file = write_space(tmp_path, variants=METHODS)
    with pytest.raises(SpaceError, match=rf"--set {field}=x: .*mine\.yaml varies it; take it out of the space"):
        load_space(file, load_profile("cpu"), {field: "x"})
    assert load_space(file, load_profile("cpu"), {"optim.lr": 0.01}).base.optim.lr == 0.01


def test_equal_variants_are_fine_where_a_condition_tells_them_apart(tmp_path: Path) -> None:
    parameters = {"model.top_k": {"values": [0.1, 0.2], "when": {"variant": "tuned"}}}
    space = make_space(tmp_path, variants={"plain": {}, "tuned": {}}, parameters=parameters)
    assert space.size() == 3


def test_every_variant_is_checked_with_every_extreme_point(tmp_path: Path) -> None:
    """A joint fault of the last variant and two parameters, in a space too large for all corners at once."""
    many = {
        name: {"type": "ordinal", "choices": [0.1 + 0.01 * i for i in range(30)]}
        for name in ("augment.threshold", "model.top_k", "optim.gamma")
    }
    late = {
        "augment.kind": {"values": ["none", "saliencycut"]},
        "augment.grid_size": {"type": "int", "low": 2, "high": 40},
    }
    fits = {"model.tap": "middle", "model.patch_size": "half", "model.patch_count": 2}
    variants = {"large": fits, "small": fits | {"data.image_size": 32}}
    with pytest.raises(SpaceError, match=r"variant=small.*augment.grid_size=17: at most half of data.image_size=32"):
        make_space(tmp_path, variants=variants, parameters=many | late)
    assert make_space(tmp_path, variants=variants, parameters=many | {"augment.grid_size": {"values": [16]}}).size()


def test_a_field_of_the_whole_study_that_no_variant_disagrees_on_joins_the_base(tmp_path: Path) -> None:
    variants = {name: fields | {"budget.epochs": 2} for name, fields in METHODS.items()}
    space = make_space(tmp_path, variants=variants)
    assert space.base.budget.epochs == 2
    assert "budget.epochs" not in space.assignments({"variant": "dra"})
    again = Space.from_dict(space.to_dict(), space.base)
    assert again.config({"variant": "dra"}) == space.config({"variant": "dra"})


def test_stored_space_is_the_same_space(tmp_path: Path) -> None:
    start = [{"variant": "dra"}, {"variant": "saliencycut", "augment.threshold": 0.4}]
    space = make_space(tmp_path, variants=METHODS, parameters=THRESHOLD, start=start)
    again = Space.from_dict(json.loads(json.dumps(space.to_dict())), TrialConfig.load(space.base.model_dump()))
    assert again.parameters == space.parameters
    assert list(again.variants.items()) == list(space.variants.items())
    assert again.start == tuple(start)
    assert list(again.points()) == list(space.points())
    assert [again.config(point) for point in again.points()] == [space.config(point) for point in space.points()]


def test_something_to_try_is_the_first_start_point_or_the_first_variant(tmp_path: Path) -> None:
    assert make_space(tmp_path, variants=METHODS).example() == {"variant": "saliencycut"}
    started = make_space(tmp_path, variants=METHODS, start=[{"variant": "devnet"}])
    assert started.config(started.example()).model.heads == "single_head"
    assert make_space(tmp_path, parameters={"optim.lr": {"values": [0.1, 0.2]}}).example() == {}


@pytest.mark.parametrize(
    ("variants", "expected"),
    [
        ({"a": {"model.backbone": "resnet18"}, "b": {"model.top_k": 0.3}}, ["efficientnet_lite0", "resnet18"]),
        ({"a": {"model.backbone": "resnet18", "model.freeze": 0}}, ["resnet18"]),
        (METHODS, ["efficientnet_lite0"]),
    ],
)
def test_backbones_of_all_variants_need_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variants: dict[str, Any], expected: list[str]
) -> None:
    from sctune.search.plan import plan

    monkeypatch.setattr(plan, "resolve_weights", lambda backbone, weights: Path(f"/{backbone}-{weights}"))
    space = make_space(tmp_path, variants=variants, set={"model.freeze": 0})
    assert plan.weights_files(space) == {name: Path(f"/{name}-imagenet") for name in expected}
