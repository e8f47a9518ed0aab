"""What is trained again: the best full runs, each configuration once, and the paper's default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sctune.config import TrialConfig, load_profile
from sctune.config.methods import DEFAULT, METHOD_SECTIONS
from sctune.confirm.candidates import Candidate, best_candidates, reference, variant_space
from sctune.confirm.plan import confirm_name, fresh_seeds
from sctune.errors import StudyError
from sctune.search.plan import plan
from sctune.search.plan.base import base_config
from sctune.search.plan.options import SearchOptions
from sctune.search.space.definition import Space
from sctune.search.space.named import method_spaces
from sctune.search.study.leaderboard import TrialRow
from sctune.search.study.manifest import SelectionSpec, StudyManifest
from sctune.trial.storage import sibling
from tests.builders import ANYWHERE, FLAT, make_manifest, make_space


def row(number: int, value: float | None, state: str = "COMPLETE", **params: Any) -> TrialRow:
    named = {name.replace("__", "."): value for name, value in params.items()}
    return TrialRow(number, state, named, {1: value or 0.0}, value, None, None, None)


@pytest.fixture
def manifest(tmp_path: Path) -> StudyManifest:
    return make_manifest(make_space(tmp_path, parameters=FLAT, set=ANYWHERE))


ROWS = [
    row(5, 0.9, augment__threshold=0.3, model__patch_count=3),
    row(2, 0.8, augment__threshold=0.3, model__patch_count=3),
    row(1, 0.7, augment__threshold=0.6, model__patch_count=2),
    row(3, 0.95, "PRUNED", augment__threshold=0.5, model__patch_count=2),
    row(4, None, "FAIL", augment__threshold=0.7, model__patch_count=2),
]


def test_full_runs_only_and_each_configuration_once(manifest: StudyManifest) -> None:
    found = best_candidates(manifest, ROWS, 3)
    assert [(one.name, one.trial, one.value) for one in found] == [("trial-5", 5, 0.9), ("trial-1", 1, 0.7)]
    assert found[0].fields == {"augment.threshold": 0.3, "model.patch_count": 3}
    assert [one.trial for one in best_candidates(manifest, ROWS, 1)] == [5]


def test_nothing_to_confirm(manifest: StudyManifest) -> None:
    with pytest.raises(StudyError, match="no full run to confirm"):
        best_candidates(manifest, ROWS[3:], 3)
    looked = manifest.model_copy(update={"selection": SelectionSpec(mode="test")})
    with pytest.raises(StudyError, match="selects on its test images"):
        best_candidates(looked, ROWS, 3)


def test_the_reference_is_the_papers_where_it_can_be(manifest: StudyManifest) -> None:
    default, notes = reference(manifest, best_candidates(manifest, ROWS, 3))
    paper = TrialConfig()
    assert default is not None and (default.name, default.trial) == ("reference", None)
    # on 160 px at stride 16 the paper's four patches on the diagonal fit
    assert default.fields == {
        "augment.threshold": paper.augment.threshold,
        "model.patch_count": paper.model.patch_count,
        "model.patch_place": "diag",
        # the profile has a density, the paper has none
        "model.normal_head": "mlp",
    }
    assert notes == []


def test_what_the_space_fixes_stays_where_the_papers_does_not_fit(tmp_path: Path) -> None:
    # the maps of 64 px hold three positions on the diagonal
    varied = {"augment.threshold": FLAT["augment.threshold"]}
    manifest = make_manifest(make_space(tmp_path, load_profile("smoke"), parameters=varied, set=ANYWHERE))
    default, notes = reference(manifest, [])
    assert default is not None and set(default.fields) == {"augment.threshold"}
    assert len(notes) == 1 and "keeps what the space fixes" in notes[0]


OWN = sorted(set(method_spaces()) - {DEFAULT})
RATIO = {"parameters": {"data.balance": {"values": [0.5, 0.6]}}}


def space_of(space: str | None, method: str | None, **overrides: Any) -> Space:
    """What a search would begin with in profile cpu, without trying all of its points."""
    options = SearchOptions(space=space or "ratio.yaml", method=method)
    tree = RATIO if space is None else method_spaces()[space]
    return Space.from_dict(tree, base_config(options, "cpu").override({**tree.get("set", {}), **overrides}))


@pytest.mark.parametrize(
    ("space", "method"), [*((name, None) for name in OWN), (None, "mlep_image"), (None, "cutpaste"), ("kdad", "kdad")]
)
def test_the_papers_default_is_it_in_a_study_of_another_method(
    space: str | None, method: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = space_of(space, method)
    default, notes = reference(make_manifest(searched), [])
    assert default is not None and notes == []
    found, profile = searched.base.override(default.fields), load_profile("cpu").override({"model.normal_head": "mlp"})
    assert found.method.name == DEFAULT
    for section in METHOD_SECTIONS:
        assert getattr(found, section) == getattr(profile, section), section
    # in the budget of the study, beside its trials, and with the weights that these two need
    assert found.budget == searched.base.budget
    space_again = variant_space(make_manifest(searched), [Candidate("trial-1", {}), default])
    assert space_again.config({"variant": "reference"}).flat() == found.override({"data.selection": "extra"}).flat()
    monkeypatch.setattr(plan, "resolve_weights", lambda backbone, weights: Path(f"/{backbone}"))
    own = {searched.base.model.backbone} if searched.base.entry.looks_at("model.backbone") else set()
    assert plan.weights_files(space_again).keys() == {profile.model.backbone} | own


def test_a_file_of_weights_keeps_its_backbone() -> None:
    searched = space_of("kdad", "kdad_resnet18", **{"model.weights": "/resnet18.pth"})
    default, _ = reference(make_manifest(searched), [])
    assert default is not None and "model.backbone" not in default.fields
    model = searched.base.override(default.fields).model
    assert (model.backbone, model.weights, model.freeze, model.tap) == ("resnet18", "/resnet18.pth", 0, "middle")


@pytest.mark.parametrize(("name", "backbone"), [("gaussian", "resnet18"), ("kdad", "wide_resnet50_2")])
def test_a_backbone_that_was_asked_for_stays_with_its_own_count_of_frozen_blocks(name: str, backbone: str) -> None:
    """The blocks that the profile freezes are counted in another backbone."""
    searched = space_of(name, None, **{"model.backbone": backbone})
    default, notes = reference(make_manifest(searched), [])
    assert default is not None and notes == []
    model = searched.base.override(default.fields).model
    assert (model.backbone, model.freeze) == (backbone, TrialConfig().model.freeze)


def test_what_a_variant_has_for_its_method_is_none_of_the_papers(tmp_path: Path) -> None:
    variants = {
        "ours": {"method.name": DEFAULT, "augment.kind": "cutmix"},
        "other": {"method.name": "mlep", "model.batch_norm": "eval", "budget.iterations": 50},
    }
    default, _ = reference(make_manifest(make_space(tmp_path, variants=variants)), [])
    cpu = load_profile("cpu")
    assert default is not None and cpu.override(default.fields) == cpu.override({"model.normal_head": "mlp"})


def test_a_candidate_that_is_the_papers_needs_no_reference(tmp_path: Path) -> None:
    parameters, cpu = {"augment.threshold": FLAT["augment.threshold"]}, load_profile("cpu")
    paper = make_space(tmp_path, cpu.override({"model.normal_head": "mlp"}), parameters=parameters)
    chosen = best_candidates(make_manifest(paper), [row(7, 0.8, augment__threshold=0.4)], 1)
    default, notes = reference(make_manifest(paper), chosen)
    assert default is None and "among the candidates: trial-7" in notes[0]
    # beside a density the same threshold is another candidate
    default, notes = reference(make_manifest(make_space(tmp_path, cpu, parameters=parameters)), chosen)
    assert default is not None and default.fields == {"augment.threshold": 0.4, "model.normal_head": "mlp"}


def test_each_variant_is_the_trials_configuration(manifest: StudyManifest) -> None:
    chosen = best_candidates(manifest, ROWS, 3)
    default, _ = reference(manifest, chosen)
    assert default is not None
    space = variant_space(manifest, [*chosen, default])
    assert space.size() == 3 and space.is_grid
    for one, params in zip(chosen, ({"augment.threshold": 0.3, "model.patch_count": 3}, ROWS[2].params), strict=True):
        ours, theirs = space.config({"variant": one.name}).flat(), manifest.config_of(params).flat()
        changed = {name for name in ours if ours[name] != theirs[name]}
        assert changed <= {"data.selection"}
    assert space.config({"variant": "reference"}).model.patch_place == "diag"
    assert space.base.data.selection == manifest.selection.mode


def test_seeds_are_new() -> None:
    assert fresh_seeds([42], 3) == (1001, 1002, 1003)
    assert fresh_seeds([1001, 1003, 7], 3) == (1002, 1004, 1005)


def test_names_and_places() -> None:
    assert confirm_name("s", 1) == "s-confirm" and confirm_name("s", 3) == "s-confirm-3"
    long = {confirm_name("x" * 79 + end, 2) for end in "ab"}
    assert len(long) == 2 and all(len(name) == 80 for name in long)
    assert sibling("/a/b/study", "s-confirm") == "/a/b/s-confirm"
    assert sibling("s3://bucket/x/study?region=eu", "n") == "s3://bucket/x/n?region=eu"
