"""Spaces in the anomaly-free setting: what cannot be trained there is left out, and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from sctune.config import TrialConfig, load_profile, profile_names
from sctune.errors import SpaceError
from sctune.search.space.definition import Space, load_space
from sctune.search.space.named import shipped_spaces
from sctune.search.space.setting import possible_in

LINE = "left out of the space, since nothing anomalous is trained on: "


def without_anomalies(profile: str = "cpu") -> TrialConfig:
    return load_profile(profile).override({"data.setting": "anomaly-free"})


def make_space(tmp_path: Path, **content: Any) -> Space:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_space(file, without_anomalies())


@pytest.mark.parametrize("profile", profile_names())
@pytest.mark.parametrize("name", sorted(shipped_spaces()))
def test_every_shipped_space_can_be_searched(name: str, profile: str) -> None:
    space = load_space(name, without_anomalies(profile))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    points = [space.suggest(study.ask()) for _ in range(200)]
    # the extreme points were tried when the space was loaded
    configs = [space.config(values) for values in [*points, *space.start]]
    assert {config.n_anomalies for config in configs} == {0}
    assert "single_head" not in {config.model.heads for config in configs}


def test_the_space_pseudo_says_what_it_leaves_out() -> None:
    space = load_space("pseudo", without_anomalies())
    assert space.notes == (f"{LINE}model.heads=single_head, augment.kind=none, data.balance",)
    assert [point["model.heads"] for point in space.start] == ["two_head_patch", "four_head"]
    # a stored study is built again from what it stored
    again = Space.from_dict(space.to_dict(), space.base)
    assert again.distributions == space.distributions
    general = load_space("pseudo", load_profile("cpu"))
    assert general.notes == ()
    assert general.by_name.keys() - space.by_name.keys() == {"data.balance"}


def test_variants_and_conditions_are_left_out(tmp_path: Path) -> None:
    space = make_space(
        tmp_path,
        variants={"devnet": {"model.heads": "single_head"}, "dra": {"model.heads": "four_head"}, "own": {}},
        parameters={
            "augment.kind": {"values": ["none", "cutmix", "saliencycut"]},
            "augment.refresh": {"values": ["iteration", "epoch"], "when": {"augment.kind": ["none", "cutmix"]}},
            "optim.gamma": {"values": [0.1, 0.5], "when": {"augment.kind": "none"}},
        },
        start=[{"augment.kind": "none", "optim.gamma": 0.5}, {"augment.kind": "cutmix"}],
    )
    assert list(space.variants) == ["dra", "own"]
    assert set(space.by_name) == {"variant", "augment.kind", "augment.refresh"}
    assert space.by_name["augment.refresh"].when == (("augment.kind", ("cutmix",)),)
    assert space.start == ({"augment.kind": "cutmix"},)
    assert space.notes == (f"{LINE}augment.kind=none, optim.gamma, variant devnet",)


def test_what_is_fixed_by_the_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"augment\.kind=none with data\.setting=anomaly-free"):
        make_space(tmp_path, parameters={"optim.gamma": {"values": [0.1, 0.5]}}, set={"augment.kind": "none"})


@pytest.mark.parametrize(
    "tree",
    [
        {"parameters": {"model.heads": {"values": "single_head"}}},
        {"parameters": {"model.heads": ["single_head"]}},
        {"parameters": ["model.heads"], "variants": 3, "start": {"model.heads": "single_head"}},
        {"variants": {"one": "single_head"}},
    ],
)
def test_malformed_content_stays_for_the_checks(tree: dict[str, Any]) -> None:
    assert possible_in(tree, "anomaly-free") == (tree, [])
