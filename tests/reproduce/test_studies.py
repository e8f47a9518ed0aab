"""From cells to studies: what is run together, under which name, and what is refused before anything runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sctune.config import load_profile
from sctune.errors import ConfigError, DataError
from sctune.reproduce.cells import Asked
from sctune.reproduce.plan import ReproduceOptions, TablePlan, _default_name, make_plan, prepare_elpv
from sctune.reproduce.studies import StudyPlan, write_space
from sctune.search.space.definition import load_space
from sctune.search.study.study import valid_name

IDLE = ("Gaussian of frozen features (ours)", "patch bank of frozen features (ours)")
"""What the columns are called that train nothing."""


def plan_of(table: str, root: Path, **options: Any) -> TablePlan:
    asked = {name: options.pop(name) for name in list(options) if name in Asked.__dataclass_fields__}
    given = {"profile": "cpu", "out": root.parent / "out", "data_root": root, **options}
    return make_plan(ReproduceOptions(table, Asked(**asked), **given))


def test_a_study_for_each_place_and_number_of_anomalies(make_root: Any) -> None:
    root = make_root({"mvtec/carpet": {"cut": 12}, "mvtec/grid": {"bent": 12}, "sdd": {"defect": 20}})
    plan = plan_of("table1", root)
    work = [(study.place.name, study.anomalies, study.tasks) for study in plan.studies]
    # what the paper compares with has a study beside that of its own methods, and so has what trains nothing
    assert (
        work[::3]
        == work[1::3]
        == work[2::3]
        == [(p, n, 3) for p in ("mvtec/carpet", "mvtec/grid", "sdd") for n in (1, 10)]
    )
    study, beside, idle = plan.studies[:3]
    assert study.name.startswith("reproduce-table1-mvtec-carpet-general-n1-cpu-")
    assert [column.name for column in study.columns] == ["devnet", "dra", "saliencycut"]
    assert [column.name for column in beside.columns] == ["mlep_image", "saoe_no_outliers"]
    assert [column.name for column in idle.columns] == ["gaussian", "patch_bank"]
    assert len({valid_name(study.name) for study in plan.studies}) == 18
    options = study.search_options(plan.setup, Path("space.yaml"), plan.study_root, 1)
    assert (options.selection, options.sampler, options.scheduler, options.keep_best) == ("test", "grid", "none", 3)
    assert (options.categories, options.n_anomalies, options.seeds) == (("carpet",), 1, (42, 43, 44))


def test_known_classes_are_tasks_of_one_study(carpet: Path) -> None:
    (study,) = plan_of("table4", carpet, categories=("carpet",)).studies
    assert study.kinds == ("color", "cut", "hole", "metal_contamination", "thread")
    assert study.tasks == 15
    assert [study.task(cell, 43).key for cell in study.cells][3] == "carpet-metal_contamination-seed43"


def test_methods_of_another_length_get_a_study_of_their_own(carpet: Path) -> None:
    asked = {"categories": ("carpet",), "anomalies": (1,), "profile": "paper"}
    studies = plan_of("table1", carpet, **asked).studies
    assert [(study.epochs, [c.name for c in study.columns]) for study in studies] == [
        (50, ["devnet"]),
        (30, ["mlep_image", "saoe_no_outliers"]),
        (30, ["dra", "saliencycut"]),
        (30, ["gaussian", "patch_bank"]),
    ]
    studies = plan_of("table1", carpet, **asked, overrides={"budget.epochs": 2}).studies
    assert [(study.epochs, len(study.columns)) for study in studies] == [(2, 3), (2, 2), (2, 2)]


def test_other_weights_are_another_study(carpet: Path) -> None:
    """Though of one length: a search resolves one kind of weights, and those that are missing must stop no other."""
    asked = {"categories": ("carpet",), "profile": "paper", "overrides": {"budget.epochs": 2}}
    studies = plan_of("table3", carpet, **asked).studies
    assert [(study.trunk, [c.name for c in study.columns]) for study in studies] == [
        (("vgg16", "imagenet"), ["kdad"]),
        (("efficientnet_lite0", "imagenet"), ["kdad_lite0"]),
        # it has no backbone, and waits for nobody's weights
        (None, ["ssm_reading"]),
        (("resnet18", "random"), ["cutpaste"]),
        (("resnet18", "imagenet"), ["saliencycut"]),
        (("resnet18", "imagenet"), ["gaussian", "patch_bank"]),
    ]


@pytest.mark.parametrize(
    ("table", "options", "columns"),
    [
        ("table3", {}, {"kdad", "kdad_lite0", "ssm_reading", "cutpaste", "saliencycut", "gaussian", "patch_bank"}),
        ("table3", {"profile": "paper", "overrides": {"budget.epochs": 2, "model.weights": "random"}}, None),
        # of a method, over a study of whose base another one is
        ("table3", {"overrides": {"method.cloner_width": 4}}, {"kdad", "kdad_lite0"}),
        ("table1", {"anomalies": (1,), "methods": ("devnet", "gaussian")}, {"devnet", "gaussian"}),
        ("table1", {"anomalies": (1,)}, None),
    ],
)
def test_a_search_makes_of_each_column_what_the_plan_did(
    carpet: Path, tmp_path: Path, table: str, options: dict[str, Any], columns: set[str] | None
) -> None:
    plan = plan_of(table, carpet, categories=("carpet",), **options)
    given = {"data.setting": plan.setup.setting, "data.selection": "test"}
    base = load_profile(plan.setup.profile).override(given)
    found: set[str] = set()
    for study in plan.studies:
        asked = study.search_options(plan.setup, write_space(study, tmp_path / "spaces"), plan.study_root, 1)
        space = load_space(asked.space, base, asked.overrides)
        for point in space.points():
            column = study.column_of(point)
            assert column is not None and space.config(point) == plan.setup.config(column)
            found.add(column.name)
    assert found == {column.name for column in plan.setup.runnable} == (columns or found)


def test_spaces_are_those_that_the_search_reads(carpet: Path, tmp_path: Path) -> None:
    def space_of(table: str, **options: Any) -> tuple[StudyPlan, Any, Any]:
        plan = plan_of(table, carpet, categories=("carpet",), anomalies=(1,), **options)
        study = plan.studies[0]
        base = plan.setup.config(plan.setup.columns[0])
        return study, plan, load_space(write_space(study, tmp_path / "spaces"), base, {})

    study, plan, space = space_of("table1")
    points = list(space.points())
    assert len(points) == space.size() == 3 and space.is_grid
    assert [study.column_of(point) for point in points] == list(study.columns)
    for point, column in zip(points, study.columns, strict=True):
        assert space.config(point).model == plan.setup.config(column).model
        assert space.config(point).augment == plan.setup.config(column).augment
    assert (space.base.data.selection_limit, space.base.budget.epochs) == (16, 6)
    study, _, space = space_of("fig7a")
    assert list(space.points()) == [dict(column.values or {}) for column in study.columns]
    assert [study.column_of(point) for point in space.points()] == list(study.columns)
    study, _, space = space_of("fig7b")
    found = [study.column_of(point) for point in space.points()]
    assert found == list(study.columns) and len(found) == 11
    assert study.column_of({"variant": "other"}) is None


@pytest.mark.parametrize("table", ["table1", "table4", "fig7a"])
def test_tables_of_the_paper_have_no_density(table: str, carpet: Path, tmp_path: Path) -> None:
    """Though the profile has one."""
    plan = plan_of(table, carpet, categories=("carpet",), anomalies=(1,))
    space = load_space(write_space(plan.studies[0], tmp_path / "spaces"), load_profile("cpu"), {})
    found = {space.config(point).model.normal_head for point in space.points()}
    assert found == {"mlp"} == {plan.setup.config(column).model.normal_head for column in plan.setup.columns}


def test_names_follow_the_work(carpet: Path) -> None:
    def name(**options: Any) -> str:
        studies = plan_of("table3", carpet, categories=("carpet",), **options).studies
        (found,) = [study.name for study in studies if [c.name for c in study.columns] in (["saliencycut"], ["dra"])]
        return found

    first = name()
    # what is compared with it is not its work
    assert name() == name(methods=("saliencycut",)) == first
    others = {
        name(seeds=(42,)),
        name(overrides={"optim.lr": 1e-3}),
        name(methods=("dra",)),
        name(shuffled=True, methods=("saliencycut",)),
        name(profile="smoke"),
    }
    assert len(others | {first}) == 6
    assert "-shuffled-" in name(shuffled=True, methods=("saliencycut",)) and "-shuffled-" not in first


def test_names_follow_the_data(carpet: Path) -> None:
    """Else a complete study would give its old numbers for images that were changed."""

    def name() -> str:
        return plan_of("table3", carpet, categories=("carpet",)).studies[-1].name

    first, folder = name(), carpet / "mvtec" / "carpet" / "test" / "cut"
    (folder / "new.png").touch()
    added = name()
    (folder / "new.png").write_bytes(b"longer")
    changed = name()
    (folder / "new.png").rename(carpet / "mvtec" / "carpet" / "test" / "good" / "new.png")
    moved = name()
    assert len({first, added, changed, moved}) == 4
    (carpet / "mvtec" / "carpet" / "test" / "good" / "new.png").unlink()
    assert name() == first


def test_control_run_is_set_and_marked(carpet: Path) -> None:
    plan = plan_of("table3", carpet, categories=("carpet",), shuffled=True, out=None)
    assert plan.studies[0].space["set"]["data.shuffle_labels"] is True
    assert plan.setup.config(plan.setup.columns[-1]).data.shuffle_labels
    assert any("SHUFFLED LABELS" in line for line in plan.header.lines)
    assert re.fullmatch("table3-cpu-shuffled-[0-9a-f]{8}", plan.out.name)
    # beside each column the same network before its training, which is not a trial
    assert [column.name for column in plan.columns][-2:] == ["saliencycut", "saliencycut-untrained"]
    assert [column.name for column in plan.studies[-1].columns] == ["saliencycut"]
    # what learns from normal images alone has no labels to shuffle
    assert not {"kdad", "kdad_lite0", "ssm", "ssm_reading"} & {column.name for column in plan.columns}
    gaps = {cell: gap.reason for gap in plan.missing for cell in gap.cells}
    assert {"KDAD", "KDAD on EfficientNet-Lite0 (our reading)", "SSM (our reading)"} <= set(gaps)
    assert "there are no labels to shuffle" in gaps["KDAD"]
    studies = plan_of("table3", carpet, categories=("carpet",)).studies
    assert not any("data.shuffle_labels" in study.space["set"] for study in studies)


def test_columns_that_have_no_use_for_a_value_are_left_out(carpet: Path) -> None:
    plan = plan_of("table3", carpet, categories=("carpet",), overrides={"optim.lr": 0.01})
    assert [column.name for column in plan.setup.runnable] == ["saliencycut"]
    # the paper's numbers stay; a reading has none
    names = ["kdad", "ssm", "cutpaste", "cutpaste_five", "saliencycut", "saliencycut-untrained"]
    assert [column.name for column in plan.columns] == names
    gaps = {cell: gap.reason for gap in plan.missing for cell in gap.cells}
    assert gaps["CutPaste"] == "--set optim.lr=0.01: method cutpaste has no use for it"
    readings = {"KDAD", "KDAD on EfficientNet-Lite0 (our reading)", "SSM (our reading)"}
    assert set(gaps) == {*readings, "CutPaste", *IDLE}


def test_saoe_has_another_name_where_it_sees_outliers(carpet: Path) -> None:
    given = {"method.outlier_root": str(carpet)}
    for methods in ((), ("saoe_no_outliers",)):
        plan = plan_of("table1", carpet, categories=("carpet",), methods=methods, overrides=given)
        (column,) = plan.setup.runnable
        assert (column.name, column.label) == ("saoe_outliers", "SAOE (our reading)")
        assert plan.setup.config(column).flat()["method.outlier_root"] == str(carpet)
    gaps = {cell: gap.reason for gap in plan_of("table1", carpet, overrides=given).missing for cell in gap.cells}
    assert "has no use for it" in gaps["SaliencyCut"]


def test_columns_that_cannot_have_a_value_are_left_out(carpet: Path) -> None:
    plan = plan_of("table3", carpet, categories=("carpet",), overrides={"data.image_size": 200})
    names = ["ssm_reading", "cutpaste", "saliencycut", "gaussian", "patch_bank"]
    assert [column.name for column in plan.setup.runnable] == names
    gaps = {cell: gap.reason for gap in plan.missing for cell in gap.cells}
    assert gaps["KDAD"] == "--set data.image_size=200: it has 128 of its own"
    assert "kdad needs a multiple of 32" in gaps["KDAD on EfficientNet-Lite0 (our reading)"]
    # its own value is no other one
    whole = plan_of("table3", carpet, categories=("carpet",), overrides={"data.image_size": 128})
    assert "kdad" in {column.name for column in whole.setup.runnable} and not whole.missing


def test_what_begins_with_features_stands_beside_itself_before_training(carpet: Path) -> None:
    def shown(table: str, **options: Any) -> list[str]:
        columns = plan_of(table, carpet, categories=("carpet",), **options).columns
        return [column.name for column in columns if column.untrained]

    # nothing of a cloner, or of a network without a backbone, is trained at the start
    assert shown("table3") == ["cutpaste-untrained", "saliencycut-untrained"]
    # published from nothing
    assert shown("table3", profile="paper") == ["saliencycut-untrained"]
    assert shown("table1", methods=("cutpaste", "dra")) == ["cutpaste-untrained"]
    assert shown("table3", overrides={"model.weights": "random"}) == shown("table1") == shown("table4") == []


def test_each_selection_has_its_own_folder(carpet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one command overwrites the table of another; the same command finds its own again."""
    monkeypatch.setenv("SCTUNE_HOME", str(carpet.parent))

    def name(**options: Any) -> str:
        asked = {name: options.pop(name) for name in list(options) if name in Asked.__dataclass_fields__}
        return _default_name(ReproduceOptions("table1", Asked(**asked), **{"data_root": carpet, **options}), "cpu")

    assert plan_of("table1", carpet, out=None, seeds=(42,)).out == Path("reproduce", name(seeds=(42,))).absolute()
    assert name() == name(data_root=None) == name(seeds=(42, 43, 44)) == name(max_concurrent=1) == "table1-cpu"
    assert name(shuffled=True) == "table1-cpu-shuffled"
    assert name(datasets=("elpv",)) == "table1-cpu-elpv"
    assert name(datasets=("sdd", "elpv")) == name(datasets=("elpv", "sdd", "elpv")) == "table1-cpu-elpv-sdd"
    asked: list[dict[str, Any]] = [
        {"seeds": (42,)},
        {"categories": ("carpet",)},
        {"categories": ("grid",)},
        {"anomalies": (1,)},
        {"methods": ("dra",)},
        {"overrides": {"optim.lr": 1e-3}},
        {"overrides": {"optim.lr": 1e-4}},
        {"data_root": carpet.parent},
        {"datasets": ("elpv",), "seeds": (42,)},
    ]
    names = [name(**options) for options in asked]
    assert len(set(names)) == len(asked) and names == [name(**options) for options in asked]
    assert all(re.fullmatch("table1-cpu(-elpv)?-[0-9a-f]{8}", one) for one in names)
    assert name(categories=("Carpet",)) == name(categories=("carpet", "carpet")) == names[1]


def test_header_says_what_was_run(carpet: Path) -> None:
    (title, facts) = plan_of("table1", carpet, profile="paper", overrides={"optim.lr": 0.001}).header.lines
    assert title == "table1: AUROC in the general setting"
    for part in (
        "profile paper",
        "image size 448 px",
        "backbone resnet18",
        "epochs 30 (DevNet 50), each of 20 iterations with 48 images",
        "seeds 42, 43, 44",
        "set optim.lr=0.001",
        "paper protocol: test images are all that is not trained on",
    ):
        assert part in facts.split("; ")


def test_a_table_carries_what_the_licences_of_its_images_ask_for(carpet: Path) -> None:
    (attribution,) = plan_of("table1", carpet, categories=("carpet",)).header.attributions
    assert attribution.startswith("MVTec AD, by Bergmann") and attribution.endswith("licensed CC BY-NC-SA 4.0")
    assert plan_of("table1", carpet, datasets=("sdd",)).header.attributions == ()


def test_header_says_where_columns_differ(carpet: Path) -> None:
    (_, facts) = plan_of("table3", carpet, methods=("kdad", "kdad_lite0", "ssm_reading", "saliencycut")).header.lines
    assert "image size 160 px (KDAD 128 px)" in facts.split("; ")
    assert "backbone efficientnet_lite0 (KDAD vgg16, SSM (our reading) none)" in facts.split("; ")
    (_, facts) = plan_of("table3", carpet, methods=("cutpaste", "saliencycut"), profile="paper").header.lines
    for part in (
        "image size 448 px (CutPaste 256 px)",
        "backbone resnet18 (CutPaste resnet18 with random weights)",
        "epochs 30 (CutPaste 256), each of 20 iterations with 48 images (CutPaste 256 updates with 96 images)",
    ):
        assert part in facts.split("; ")


def test_a_header_without_any_training_says_so(carpet: Path) -> None:
    (_, facts) = plan_of("table1", carpet, methods=("gaussian", "patch_bank")).header.lines
    assert "nothing is trained" in facts.split("; ") and "epochs" not in facts
    (_, facts) = plan_of("table1", carpet, methods=("dra", "gaussian")).header.lines
    for part in ("epochs 6, each of 20 iterations with 18 images", f"nothing is trained by {IDLE[0]}"):
        assert part in facts.split("; ")


def test_points_that_no_map_holds_are_named(carpet: Path) -> None:
    plan = plan_of("fig7b", carpet, profile="smoke", categories=("carpet",))
    assert [gap.cells for gap in plan.missing] == [("4 patches on the diagonal",)]
    assert "O=3 diag positions" in plan.missing[0].reason
    assert len(plan.studies[0].columns) == 10


def test_the_dry_run_lists_runs_and_gaps(make_root: Any) -> None:
    root = make_root({"mvtec/carpet": {"color": 5, "cut": 12}})
    plan = plan_of("table2", root, datasets=("mvtec",), anomalies=(10,), seeds=(42,))
    text = "\n".join(plan.lines)
    assert "1 of 9 rows can be run" in text
    assert "3 trials (devnet, dra, saliencycut) x 1 tasks x 6 epochs" in text and "rows: Cut" in text
    assert "missing: Carpet Color n=10: mvtec/carpet has 5 images of color, 10 are to be trained on" in text
    document = plan.to_dict()
    assert [study["rows"] for study in document["studies"]] == [["Cut"]] * 3
    assert sum(len(gap["cells"]) for gap in document["missing"]) == 8
    assert not plan.out.exists() and not plan.study_root.exists()


def test_the_dry_run_says_which_weights_are_not_here(carpet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sctune.backbones.weights.local_weights", lambda name: None if name == "vgg16" else carpet)
    line = "weights of vgg16 are downloaded when training or scoring needs them; without them kdad cannot be run"
    plan = plan_of("table3", carpet, categories=("carpet",))
    assert plan.downloads == plan.to_dict()["downloads"] == [line] and line in plan.lines
    assert plan_of("table3", carpet, overrides={"model.weights": "random"}).downloads == []


def test_elpv_is_prepared_where_only_the_package_is_there(make_root: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("elpv_dataset")
    monkeypatch.setattr("sctune.reproduce.cells.elpv_installed", lambda: True)
    root = make_root({})
    said: list[str] = []
    plan = prepare_elpv(plan_of("table1", root, datasets=("elpv",), anomalies=(10,)), said.extend)
    assert {study.place.source for study in plan.studies} == {str(root / "elpv")}
    data = plan.studies[0].place.data
    marks = [file.split for file in data.normals]
    assert (marks.count("train"), marks.count("test"), len(data.anomalies)) == (1131, 377, 715)
    assert said == [f"ELPV is not in {root}: preparing it from the installed package"]
    assert prepare_elpv(plan, said.extend) is plan and len(said) == 1


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ("table1", {"overrides": {"optim.lrr": 1}}, "--set optim.lrr: unknown configuration key; did you mean"),
        ("table1", {"overrides": {"model.heads": "four_head"}}, "--set model.heads: table1 varies it"),
        ("table1", {"overrides": {"data.n_anomalies": 5}}, "--set data.n_anomalies: .*use --n-anomalies"),
        ("table1", {"overrides": {"data.shuffle_labels": True}}, "use --shuffle-labels"),
        ("table1", {"overrides": {"seed": 5}}, "--set seed: the table decides it"),
        ("table1", {"overrides": {"data.image_size": 8}}, "DevNet: data.image_size=8: "),
        ("table1", {"profile": "cpus"}, "unknown profile 'cpus'; did you mean 'cpu'"),
        ("table1", {"seeds": (42, 42)}, "--seeds 42,42: name each number once"),
        ("table1", {"anomalies": (1, 1)}, "--n-anomalies 1,1: name each number once"),
        (
            "fig7a",
            {"overrides": {"augment.kind": "cutmix"}},
            "--set augment.kind=cutmix: fig7a varies augment.threshold",
        ),
        (
            "fig7b",
            {"overrides": {"model.heads": "two_head_latent"}},
            "fig7b varies model.patch_place, .* only with model.heads=two_head_patch; leave it out",
        ),
        ("table3", {"methods": ("devnet",)}, "DevNet: .*learns from labelled anomalies"),
        # a column that was asked for by name is not left out
        ("table3", {"methods": ("kdad",), "shuffled": True}, "KDAD: .*no labels to shuffle"),
        (
            "table3",
            {"methods": ("saliencycut", "cutpaste"), "overrides": {"optim.lr": 0.01}},
            "CutPaste: --set optim.lr=0.01: method cutpaste has no use for it",
        ),
        (
            "table3",
            {"methods": ("kdad",), "overrides": {"model.backbone": "resnet18"}},
            "KDAD: --set model.backbone=resnet18: it has vgg16 of its own",
        ),
        # nor is a bad value a reason to leave out all that would take it
        ("table3", {"overrides": {"optim.lr": "much"}}, "SaliencyCut: optim.lr='much': "),
        ("table1", {"overrides": {"method.cloner_width": 4}}, "DevNet: --set method.cloner_width=4: .* no use for it"),
        ("table3", {"overrides": {"method.name": "kdad"}}, "--set method.name: the table decides it; use --method"),
    ],
)
def test_impossible_requests_are_refused(carpet: Path, table: str, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(table, carpet, **options)


def test_places_that_cannot_be_used_are_refused(carpet: Path) -> None:
    file = carpet.parent / "file"
    file.touch()
    with pytest.raises(ConfigError, match=f"--out {file}: {file} is a file; give a folder"):
        plan_of("table1", carpet, out=file)
    with pytest.raises(ConfigError, match=f"--out {file / 'below'}: {file} is a file"):
        plan_of("table1", carpet, out=file / "below")
    with pytest.raises(DataError, match=f"--data-root {file} is no folder"):
        plan_of("table1", file)
