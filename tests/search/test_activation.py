"""Parameters that mean nothing without another are drawn only with it, without the space saying so."""

import json
from pathlib import Path

import optuna
import pytest
import yaml

from sctune.config import TrialConfig, field_names, load_profile
from sctune.errors import SpaceError
from sctune.search.space.activation import activation_conditions
from sctune.search.space.definition import Space, load_space

NEEDS = activation_conditions()


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
    assert field in field_names()
    for other, wanted in NEEDS[field]:
        for value in wanted:
            known = {"data.known_class": "crack"} if value == "hard" else {}
            place: dict[str, object] = {} if other == "method.name" else {"model.patch_place": "grid2d"}
            if other.startswith("method.") and other != "method.name":
                # a method's own field, which another method does not have
                place = {"method.name": dict(NEEDS[field])["method.name"][0]}
            values = place | {other: value} | known
            found = TrialConfig().override(values).flat()[other]
            # names that are a list may come in any order
            assert found == value or sorted(str(found).split(",")) == sorted(str(value).split(","))
            # one pass decides what a need sees: what is needed has no needs itself, but for a method that both have
            assert set(NEEDS.get(other, ())) <= {need for need in NEEDS[field] if need[0] == "method.name"}


def test_the_space_pseudo_draws_only_what_counts() -> None:
    space = load_space("pseudo", load_profile("cpu"))
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
    assert active["single_head", "none"] == common | {"data.balance"}


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


HEADS = ["two_head_patch", "four_head", "single_head"]
KIND_OF_TWO = {"values": ["saliencycut", "cutmix"], "when": {"model.heads": HEADS[:2]}}
KIND_OF_ONE = {"values": ["saliencycut"], "when": {"model.heads": "two_head_patch"}}
UNDER_A_CONDITION = {
    "no-op": ({"model.heads": HEADS, "augment.kind": KIND_OF_TWO, "augment.refresh": ["iteration", "epoch"]}, "none"),
    "threshold": ({"model.heads": HEADS[:2], "augment.kind": KIND_OF_ONE, "augment.threshold": [0.2, 0.4]}, "cutmix"),
    "by the base alone": (
        {
            "model.heads": HEADS[:2],
            "augment.kind": {"values": ["cutmix", "none"], "when": {"model.heads": "four_head"}},
            "augment.threshold": [0.2, 0.4],
        },
        "saliencycut",
    ),
    "declared before": (
        {"augment.refresh": ["iteration", "epoch"], "model.heads": HEADS, "augment.kind": KIND_OF_TWO},
        "saliencycut",
    ),
}


def grids(parameters: dict) -> dict:
    return {name: body if isinstance(body, dict) else {"values": body} for name, body in parameters.items()}


@pytest.mark.parametrize("case", UNDER_A_CONDITION)
def test_a_need_asks_what_is_trained_with_where_the_other_is_not_drawn(tmp_path: Path, case: str) -> None:
    parameters, kind = UNDER_A_CONDITION[case]
    space = make_space(tmp_path, grids(parameters), set={"augment.kind": kind})
    points = list(space.points())
    assert len(points) == space.size() == len({str(space.config(point)) for point in points})
    for point in points:
        trained = space.config(point).flat()
        for name in ("augment.refresh", "augment.threshold"):
            met = all(trained[other] in wanted for other, wanted in NEEDS[name])
            assert (name in point) == (name in parameters and met)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert {space.key(space.suggest(study.ask())) for _ in range(200)} == {space.key(point) for point in points}
    again = Space.from_dict(json.loads(json.dumps(space.to_dict())), TrialConfig.load(space.base.model_dump()))
    assert again.parameters == space.parameters
    assert list(again.points()) == points


def test_refresh_is_not_drawn_for_the_base_value_that_has_no_pseudo_anomalies(tmp_path: Path) -> None:
    parameters, kind = UNDER_A_CONDITION["no-op"]
    space = make_space(tmp_path, grids(parameters), set={"augment.kind": kind})
    assert [point for point in space.points() if point["model.heads"] == "single_head"] == [
        {"model.heads": "single_head"}
    ]
    assert space.size() == 2 * 2 * 2 + 1


def test_an_own_condition_on_a_parameter_that_is_not_drawn_does_not_hold(tmp_path: Path) -> None:
    """Though the base's kind, which is trained with there, is the one that it names."""
    own = {"values": [0.2, 0.4], "when": {"augment.kind": "saliencycut"}}
    parameters = {"model.heads": HEADS, "augment.kind": KIND_OF_TWO, "augment.threshold": own}
    space = make_space(tmp_path, grids(parameters), set={"augment.kind": "saliencycut"})
    assert {point["model.heads"] for point in space.points() if "augment.threshold" in point} == set(HEADS[:2])


def test_a_start_point_may_rest_on_the_base_value(tmp_path: Path) -> None:
    parameters, kind = UNDER_A_CONDITION["by the base alone"]
    more = {"set": {"augment.kind": kind}, "start": [{"model.heads": "two_head_patch", "augment.threshold": 0.2}]}
    assert make_space(tmp_path, grids(parameters), **more).start
    for open_point in ({"model.heads": "four_head", "augment.threshold": 0.2}, {"augment.threshold": 0.2}):
        with pytest.raises(SpaceError, match=r"start\[0\]: augment.threshold is not active there"):
            make_space(tmp_path, grids(parameters), **more | {"start": [open_point]})


def test_what_neither_the_base_nor_a_point_has_is_never_drawn(tmp_path: Path) -> None:
    parameters = {"model.heads": HEADS, "augment.kind": KIND_OF_TWO, "augment.cutpaste": ["scar", "union"]}
    with pytest.raises(SpaceError, match=r"augment\.cutpaste\.when\.augment\.kind: 'cutpaste' is never drawn"):
        make_space(tmp_path, grids(parameters), set={"augment.kind": "none"})


def test_large_spaces_are_checked_where_a_need_holds_by_the_base(tmp_path: Path) -> None:
    """All corners at once are too many; the cells count only where the kind is the base's."""
    many = {
        name: {"type": "ordinal", "choices": [0.1 + 0.01 * i for i in range(12)]}
        for name in ("optim.lr", "model.top_k", "optim.gamma", "loss.margin")
    }
    late = {
        "model.heads": ["four_head", "single_head"],
        "augment.kind": {"values": ["cutmix", "none"], "when": {"model.heads": "four_head"}},
        "augment.grid_size": {"type": "int", "low": 2, "high": 40},
        "data.image_size": [160, 64],
    }
    with pytest.raises(SpaceError, match=r"single_head.*augment.grid_size=33: at most half of data.image_size=64"):
        make_space(tmp_path, grids(many | late), set={"augment.kind": "saliencycut"})


def test_what_looks_at_a_parameter_that_is_held_back_is_held_back_too(tmp_path: Path) -> None:
    space = make_space(
        tmp_path,
        {
            "model.patch_count": {"values": [2, 4]},
            "model.top_k": {"values": [0.1, 0.2], "when": {"model.patch_count": 4}},
            "optim.gamma": {"values": [0.5, 0.6], "when": {"model.top_k": 0.2}},
            "optim.lr": {"values": [0.001]},
            "model.heads": {"values": ["two_head_patch", "single_head"]},
        },
    )
    order = ["optim.lr", "model.heads", "model.patch_count", "model.top_k", "optim.gamma"]
    assert [parameter.name for parameter in space.parameters] == order
    # patches: 2, or 4 with top_k .1 or .2, the latter with two gammas; single head: one
    assert space.size() == len(list(space.points())) == 1 + 1 + 2 + 1


@pytest.mark.parametrize(
    ("condition", "later"),
    [({"optim.lr": 0.001}, "optim.lr"), ({"model.patch_count": 2}, "model.patch_count")],
    ids=["later", "itself"],
)
def test_holding_back_does_not_hide_a_condition_on_a_later_parameter(
    tmp_path: Path, condition: dict, later: str
) -> None:
    parameters = {
        "model.patch_count": {"values": [2, 4], "when": condition},
        "model.heads": ["two_head_patch", "single_head"],
        "optim.lr": [0.001],
    }
    with pytest.raises(SpaceError, match=rf"model.patch_count.when.{later}: declared later or itself"):
        make_space(tmp_path, grids(parameters))


@pytest.mark.parametrize("setting", ["general", "hard", "anomaly-free"])
def test_the_balance_of_a_batch_counts_where_anomalies_are_seen(tmp_path: Path, setting: str) -> None:
    base = load_profile("cpu").override(
        {"data.setting": setting, "data.known_class": "crack" if setting == "hard" else None}
    )
    path = tmp_path / "space.yaml"
    path.write_text("parameters: {data.balance: {values: [0.5, 0.6]}, model.top_k: {values: [0.1, 0.2]}}")
    assert load_space(path, base).size() == (2 if setting == "anomaly-free" else 4)
