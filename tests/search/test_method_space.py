"""The space over all methods: what it holds, what a command line changes of it, and that it stays what it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import optuna
import pytest
import yaml
from pydantic import Field

from sctune.config import (
    MethodEntry,
    MethodSection,
    TrialConfig,
    load_profile,
    method_entries,
    methods,
    profile_names,
    register,
)
from sctune.confirm.candidates import Candidate, variant_space
from sctune.errors import ConfigError
from sctune.pages.commands import changed_fields, search_words
from sctune.search.plan.base import search_space
from sctune.search.plan.method_space import method_space
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.plan import make_plan
from sctune.search.space import definition
from sctune.search.space.checks import check_feasible
from sctune.search.space.definition import Space, load_space
from sctune.search.suggest.samplers import make_sampler
from sctune.search.suggest.suggester import Suggester
from tests.builders import make_manifest

REFERENCES = ("gaussian", "patch_bank")


@pytest.fixture(scope="module")
def space() -> Space:
    """Of profile cpu, whose searches run references."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(definition, "check_feasible", lambda *_: None)
        return method_space("cpu", load_profile("cpu"), {}, REFERENCES)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of extreme points are checked in a test of their own."""
    monkeypatch.setattr(definition, "check_feasible", lambda *_: None)


def test_all_of_it_can_be_trained(space: Space) -> None:
    check_feasible(space, "method")


def made(overrides: dict[str, Any] | None = None, profile: str = "cpu", **fields: Any) -> Space:
    base = load_profile(profile).override({f"data.{name}": value for name, value in fields.items()})
    return method_space(profile, base, overrides or {})


def searched(space: Space, method: str) -> set[str]:
    """Fields that are drawn where this method is."""
    return {p.name for p in space.parameters if method in dict(p.when).get("method.name", ())}


def drawn(space: Space, count: int) -> list[dict[str, Any]]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.suggest(study.ask()) for _ in range(count)]


def test_every_method_is_there_with_all_that_is_searched_of_it(space: Space) -> None:
    assert list(space.variants) == [entry.name for entry in method_entries()]
    for entry in method_entries():
        assert space.variants[entry.name]["method.name"] == entry.name
        missing = set(entry.hyperparameters) - searched(space, entry.name)
        # what another method searches in another way is said
        assert all(any(line.startswith(f"{one} of {entry.name} stays at ") for line in space.notes) for one in missing)
        assert searched(space, entry.name) <= set(entry.hyperparameters)
    # one parameter for all that search it in the same way
    assert {"deviation", "mlep", "saoe"} <= set(dict(space.by_name["optim.lr"].when)["method.name"])
    assert dict(space.by_name["method.push"].when) == {"method.name": REFERENCES}


def test_each_point_has_one_method_and_its_own_parameters(space: Space) -> None:
    points = drawn(space, 80)
    assert {point["variant"] for point in points} == set(space.variants)
    for point in points:
        config = space.config(point)
        assert config.method.name == point["variant"]
        assert set(point) - {"variant"} <= searched(space, point["variant"])
    heads = [point for point in points if point["variant"] == "deviation"]
    assert all(("model.patch_count" in one) == (one["model.heads"] == "two_head_patch") for one in heads)
    assert space.size() is None and not space.is_grid


def test_it_begins_with_each_method_as_the_profile_has_it(space: Space) -> None:
    starts = {point["variant"]: point for point in space.start}
    assert list(starts) == list(space.variants)
    assert space.config(starts["deviation"]) == space.base
    # the study runs these two as they usually are: the sampler chooses another
    assert all(starts[name] == {"variant": name} for name in REFERENCES)
    configs = {name: space.config(point) for name, point in starts.items()}
    # where the default is none of the searched values
    assert starts["kdad"]["method.taps"] == "stride4,stride8,stride16,stride32"
    assert starts["cutpaste"]["method.trunk_share"] == pytest.approx(0.1)
    # what a profile adds to a published method
    assert configs["mlep"].optim.lr == configs["saoe"].optim.lr == 1e-3 != space.base.optim.lr
    assert configs["kdad"].model.backbone == space.base.model.backbone


def test_a_sampler_begins_with_one_trial_a_method(space: Space) -> None:
    suggester = Suggester(space, make_sampler("tpe", 0, space=space), 0)
    asked = []
    for _ in range(len(space.variants) + 4):
        trial = suggester.ask()
        assert trial is not None
        asked.append(suggester.params(trial.number))
    assert [point["variant"] for point in asked[: len(space.variants)]] == list(space.variants)
    assert len({space.key(point) for point in asked}) == len(asked)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("setting", ["general", "anomaly-free"])
@pytest.mark.parametrize("profile", profile_names())
def test_every_profile_and_setting_has_one(profile: str, setting: str) -> None:
    space = made(profile=profile, setting=setting)
    assert set(space.variants) == {entry.name for entry in method_entries() if setting in entry.settings}
    for point in (*space.start, *drawn(space, 40)):
        assert space.config(point).method.name == point["variant"]
    # what a labelled anomaly is needed for is not drawn without one
    labelled = {"method.seen", "method.push", "method.margin", "method.hinge_weight"}
    assert labelled & space.by_name.keys() == (labelled if setting == "general" else set())
    shared = [line for line in space.notes if line.startswith("left out of published recipes, since all trials")]
    assert len(shared) == (profile == "paper")
    assert all("budget.epochs=601 of kdad" in line and "model.weights=random of cutpaste" in line for line in shared)


@pytest.mark.usefixtures("unchecked")
def test_its_file_is_a_space_like_any_other(space: Space, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(space.to_dict(), sort_keys=False))
    again = load_space(file, load_profile("cpu"))
    assert (again.variants, again.start, again.parameters) == (space.variants, space.start, space.parameters)
    assert drawn(again, 20) == drawn(space, 20)


def test_a_report_repeats_it_from_its_file(space: Space) -> None:
    """Another machine may have other methods."""
    manifest = make_manifest(space)
    words = search_words(manifest, "again")
    assert words[words.index("--space") + 1] == "space.yaml" and "--method" not in words
    assert changed_fields(manifest) == {}


class OwnSection(MethodSection):
    name: Literal["own"] = "own"
    confetti_count: float = Field(3.0, gt=0)
    cloner_width: int = 4


OWN = MethodEntry(
    name="own",
    description="of another package",
    section=OwnSection,
    implementation="own:Own",
    settings=("general",),
    uses=("optim.lr", "model.top_k"),
    conditions={"method.confetti_count": (("method.cloner_width", (4,)),)},
    hyperparameters={"method.confetti_count": {"values": [1.0, 3.0]}, "model.top_k": {"values": [0.1, 0.2]}},
    published={"own": {"config": {"method": {"name": "own"}}, "cpu": {"optim": {"lr": 0.5}}}},
)


@pytest.fixture
def own() -> Iterator[MethodEntry]:
    register(OWN)
    yield OWN
    methods.forget("own")


def test_a_stored_space_stays_what_it_was_when_a_method_is_added(space: Space) -> None:
    """The new one has fields of the same names, with conditions of its own."""
    stored = json.loads(json.dumps(space.to_dict()))
    register(OWN)
    try:
        again = Space.from_dict(stored, space.base)
        assert again.parameters == space.parameters and again.variants == space.variants
        assert drawn(again, 20) == drawn(space, 20)
    finally:
        methods.forget("own")


@pytest.mark.usefixtures("unchecked")
def test_another_package_s_method_is_searched_beside_the_others(own: MethodEntry) -> None:
    space = made()
    # it sets what others search, and does not search what they search in another way
    assert space.variants["own"] == {
        "method.name": "own",
        "optim.lr": 0.5,
        "method.confetti_count": 3.0,
        "model.top_k": 0.1,
    }
    assert searched(space, "own") == set()
    assert "model.top_k of own stays at 0.1, since deviation searches it in another way" in space.notes
    points = [point for point in drawn(space, 60) if point["variant"] in ("own", "deviation", "saoe")]
    for point in points:
        config = space.config(point)
        assert (config.optim.lr == 0.5) == (point["variant"] == "own")
        assert ("optim.lr" in point) == (point["variant"] != "own")
    assert {point["variant"] for point in points} == {"own", "deviation", "saoe"}
    assert "method own is left out" in "".join(made(setting="anomaly-free").notes)


@pytest.mark.usefixtures("unchecked")
def test_what_the_command_line_sets_is_not_searched() -> None:
    space = made({"method.sigma": 5, "optim.lr": 1e-2, "model.heads": "four_head", "budget.iterations": 7})
    given = {"method.sigma", "optim.lr", "model.heads", "budget.iterations"}
    assert not given & space.by_name.keys()
    configs = {point["variant"]: space.config(point) for point in space.start}
    assert configs["ssm"].flat()["method.sigma"] == 5.0
    assert {config.budget.iterations for config in configs.values()} == {7}
    assert configs["mlep"].optim.lr == configs["deviation"].optim.lr == 1e-2
    # a field that only some methods have
    assert configs["deviation"].model.heads == "four_head"
    assert configs["mlep"].model.heads == TrialConfig().model.heads
    assert "model.patch_count" not in space.by_name


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method.name": "ssm"}, "method.name=ssm: space method searches over all methods; take --space ssm"),
        ({"method.sigmaa": 3}, r"unknown configuration key 'method\.sigmaa'; did you mean 'method\.sigma'"),
        ({"method.sigma": -3}, r"method\.sigma=-3: "),
        ({"optim.lr": -1}, r"optim\.lr=-1: "),
        ({"optim.lrr": 1}, r"unknown configuration key 'optim\.lrr'"),
        ({"seed": 3}, "belongs to the task"),
    ],
)
def test_what_no_method_can_have_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        made(overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("unchecked")
def test_a_method_that_cannot_be_trained_so_is_left_out_and_said() -> None:
    space = made({"data.shuffle_labels": True, "model.normal_head": "mlp"})
    gone = {"gaussian", "patch_bank", "ssm", "kdad"}
    assert {"deviation", "mlep", "saoe"} <= set(space.variants) <= {entry.name for entry in method_entries()} - gone
    for name in gone:
        assert any(line.startswith(f"method {name} is left out of the space: data.shuffle") for line in space.notes)
    assert not searched(space, "kdad") and "method.taps" not in space.by_name


@pytest.mark.usefixtures("unchecked")
def test_rungs_are_those_of_the_methods_that_train() -> None:
    """The first method that is left trains nothing, and the base of the space is that one's."""
    space = made({"augment.kind": "none"}, setting="anomaly-free")
    assert "deviation" not in space.variants and not space.base.entry.trains
    assert space.epochs == load_profile("cpu").budget.epochs
    alone = load_space("gaussian", load_profile("cpu").override({"method.name": "gaussian"}))
    assert alone.epochs == 1


def test_what_is_set_for_a_method_that_cannot_be_trained_anyway_is_no_mistake() -> None:
    """Cutpaste and kdad have no labels to shuffle, with or without a length."""
    space = made({"data.shuffle_labels": True, "model.normal_head": "mlp", "method.total_updates": 400})
    for name in ("cutpaste", "kdad"):
        assert any(line.startswith(f"method {name} is left out of the space: data.shuffle") for line in space.notes)


@pytest.mark.usefixtures("unchecked")
def test_too_few_trials_for_each_method_are_said() -> None:
    base, names = load_profile("cpu"), [entry.name for entry in method_entries()]
    space = method_space("cpu", base, {}, (), len(names) - 2)
    assert f"are too few to try each of {len(names)} methods once: {names[-2]}, {names[-1]} will" in space.notes[-1]
    assert not any("too few" in line for line in method_space("cpu", base, {}, (), len(names)).notes)


@pytest.mark.usefixtures("unchecked")
def test_options_that_do_not_go_with_it(image_folder: Path) -> None:
    options = SearchOptions(space="method", method="ssm_reading", name="s")
    base = load_profile("cpu").override({"method.name": "ssm"})
    with pytest.raises(ConfigError, match=r"--method ssm_reading is one method, .* or take --space ssm$"):
        search_space(options, "cpu", base)
    options = SearchOptions(space="method", name="s", profile="smoke", data=str(image_folder), sampler="cmaes")
    with pytest.raises(ConfigError, match="cmaes learns of numbers that every point has, and space method has none"):
        make_plan(options, has_gpu=False)
    # references that are not run are begun with as they usually are
    space = search_space(options, "smoke", load_profile("smoke"))
    (start,) = [point for point in space.start if point["variant"] == "gaussian"]
    assert space.config(start).method == TrialConfig().override({"method.name": "gaussian"}).method
    assert any("4 trials are too few" in line for line in space.notes)


def test_what_won_can_be_confirmed(space: Space) -> None:
    """Each candidate keeps its method in the grid over the chosen ones."""
    manifest = make_manifest(replace(space, notes=()))
    chosen = [Candidate(f"trial-{number}", space.assignments(point)) for number, point in enumerate(space.start)]
    grid = variant_space(manifest, chosen)
    # the mode that was found is asked for
    expected = [space.config(point).override({"data.selection": "extra"}) for point in space.start]
    assert [grid.config(point) for point in grid.points()] == expected
