"""The plan: what is refused before a study exists, and what a resumed study insists on."""

import shutil

import pytest
from safetensors.torch import save_file

from sctune.config import load_profile
from sctune.errors import ConfigError, DataError, SpaceError, StudyError, WeightsError
from sctune.methods.named import method_values
from sctune.search.cluster.connection import Resources
from sctune.search.plan.base import base_config, search_space
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.plan import make_plan
from sctune.search.run.driver import check_versions
from sctune.search.run.plan_lines import plan_lines
from sctune.search.study.splits import study_splits
from sctune.search.study.study import Study


def options(folder, **more):
    return SearchOptions(space="threshold_patch", name="s", profile="smoke", data=str(folder), **more)


def test_a_plan_writes_no_study(image_folder, sctune_home):
    plan = make_plan(options(image_folder, seeds=(1, 2), selection="extra"), has_gpu=False)
    assert [task.key for task in plan.manifest.tasks] == ["seed1", "seed2"]
    assert plan.manifest.splits == {key: split.digest for key, split in plan.splits.items()}
    assert not (sctune_home / "studies").exists()


def test_a_plan_names_the_store_of_the_runs_and_makes_none(image_folder, sctune_home, tmp_path, monkeypatch):
    record = tmp_path / "record.db"
    asked = options(image_folder, selection="extra", storage=f"sqlite:///{record}")
    resources = Resources(2, 0, 1, 0, 2, 1)
    plan = make_plan(asked, has_gpu=False)
    assert f"runs: sqlite:///{sctune_home}/mlflow.db (the default)" in plan_lines(plan, resources)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "theirs"))
    plan = make_plan(asked, has_gpu=False)
    assert plan.manifest.tracking_uri == f"sqlite:///{tmp_path}/theirs/mlflow.db"
    assert f"runs: sqlite:///{tmp_path}/theirs/mlflow.db (MLFLOW_TRACKING_URI)" in plan_lines(plan, resources)
    assert not record.exists() and not (tmp_path / "theirs").exists()
    assert [path.name for path in sctune_home.iterdir()] == ["cache"]


@pytest.mark.parametrize(
    ("space", "overrides", "told"),
    [
        ("threshold_patch", {}, True),
        ("threshold_patch", {"augment.rotation": "quarter"}, False),
        ("gaussian", {}, False),
        ("method", {}, True),
    ],
)
def test_free_turns_point_to_what_says_whether_the_part_bears_them(image_folder, space, overrides, told):
    asked = options(image_folder, selection="extra", overrides=overrides).model_copy(update={"space": space})
    plan = make_plan(asked, has_gpu=False)
    lines = [line for line in plan_lines(plan, Resources(2, 0, 1, 0, 2, 1)) if "sctune data changes" in line]
    assert [line.partition("`")[2].partition("`")[0] for line in lines] == (
        [f"sctune data changes {image_folder}"] if told else []
    )


def test_a_grid_that_nobody_can_run_to_its_end_needs_a_limit(image_folder, tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("parameters:\n  augment.threshold: {type: float, low: 0.1, high: 0.9, step: 0.00000003}\n")
    asked = options(image_folder, sampler="grid", selection="extra").model_copy(update={"space": str(path)})
    with pytest.raises(ConfigError, match=r"sampler grid: 26666667 points, a trial for each; give --trials N"):
        make_plan(asked, has_gpu=False)
    plan = make_plan(asked.model_copy(update={"trials": 3}), has_gpu=False)
    assert plan.manifest.trials == 3


@pytest.mark.parametrize(
    ("asked", "replicates", "keys"),
    [
        ({"replicates": 2}, 2, ["seed42", "seed43"]),
        ({"seeds": (7, 3), "replicates": 2}, 2, ["seed7", "seed3"]),
        ({"seeds": (7,), "scheduler": "race", "replicates": 3}, 3, ["seed7", "seed8", "seed9"]),
        ({"seeds": (7, 3, 5), "scheduler": "race"}, 3, ["seed7", "seed3", "seed5"]),
        ({"seeds": (2**32 - 1,), "replicates": 2}, 2, ["seed4294967295", "seed0"]),
        # as ever: one training on both at once
        ({"seeds": (7, 3)}, 1, ["seed7", "seed3"]),
        ({"replicates": 1}, 1, ["seed42"]),
    ],
)
def test_replicates_are_seeds_one_after_another(image_folder, asked, replicates, keys):
    plan = make_plan(options(image_folder, selection="extra", **asked), has_gpu=False)
    assert plan.manifest.replicates == replicates and [task.key for task in plan.manifest.tasks] == keys
    assert plan.manifest.full_epochs == replicates * plan.space.epochs
    told = [line for line in plan_lines(plan, Resources(2, 0, 1, 0, 2, 1)) if line.startswith("replicates")]
    assert bool(told) == (replicates > 1)


def test_the_tasks_of_a_replicate_stand_together(image_folder):
    asked = options(image_folder, selection="seen", seeds=(1, 2), replicates=2)
    tasks = make_plan(asked, has_gpu=False).manifest.tasks
    # two folds of each seed
    assert [(task.seed, task.fold) for task in tasks] == [(1, 0), (1, 1), (2, 0), (2, 1)]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"replicates": 3, "seeds": (1, 2)},
            r"--replicates 3 and --seeds 1,2: each replicate has a seed of its own; give 3 se",
        ),
        ({"replicates": 1, "scheduler": "race"}, r"scheduler race compares .* have one; search with --replicates 4"),
        ({"scheduler": "race", "audit": 0.1}, r"--audit 0.1: a race gives its further replicates"),
        ({"scheduler": "race", "look_behind": 2}, r"--look-behind 2: what scheduler race decides"),
    ],
)
def test_a_race_that_cannot_be_is_refused(image_folder, asked, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(options(image_folder, selection="extra", **asked), has_gpu=False)


def test_rungs_and_audits_are_asked_of_a_scheduler_that_stops(image_folder):
    plan = make_plan(options(image_folder, selection="extra", grace=1, factor=4, audit=0.5), has_gpu=False)
    spec = {"name": "asha", "grace": 1, "factor": 4, "stop_confidence": None}
    assert plan.manifest.scheduler.model_dump() == spec
    certain = options(image_folder, selection="extra", stop_confidence=0.9)
    assert make_plan(certain, has_gpu=False).manifest.scheduler.stop_confidence == 0.9
    with pytest.raises(ConfigError, match=r"--stop-confidence 0\.9: scheduler asha-promotion pauses trials"):
        make_plan(certain.model_copy(update={"scheduler": "asha-promotion"}), has_gpu=False)
    assert plan.manifest.audit == 0.5
    with pytest.raises(ConfigError, match=r"grace=9 must be in 1 \.\. budget.epochs=4"):
        make_plan(options(image_folder, selection="extra", grace=9), has_gpu=False)
    for asked in ({"grace": 1}, {"factor": 3}, {"audit": 0.1}, {"stop_confidence": 0.8}):
        (name,) = asked
        with pytest.raises(
            ConfigError, match=f"--{name.replace('_', '-')} .*: scheduler none stops no trial; leave it out"
        ):
            make_plan(options(image_folder, selection="extra", scheduler="none", **asked), has_gpu=False)


def test_folds_are_tasks(image_folder):
    plan = make_plan(options(image_folder, selection="seen"), has_gpu=False)
    assert [task.key for task in plan.manifest.tasks] == ["seed42-fold1of2", "seed42-fold2of2"]
    held_out = [{f.kind for f in split.selection if f.label} for split in plan.splits.values()]
    assert not held_out[0] & held_out[1]


def test_groups_from_the_command_line_reach_the_plan(image_folder):
    regex = r"(\w+/\w+/\d\d)\d\.png"
    plan = make_plan(options(image_folder, overrides={"data.group": regex}), has_gpu=False)
    groups = {file.group for split in plan.splits.values() for file in split.development}
    assert all(group.count("/") == 2 and not group.endswith(".png") for group in groups)
    assert study_splits(plan.manifest).keys() == plan.splits.keys()


def test_a_task_named_twice_is_refused(image_folder):
    with pytest.raises(ConfigError, match="asked for twice"):
        make_plan(options(image_folder, seeds=(1, 1), selection="extra"), has_gpu=False)


@pytest.mark.parametrize("space", ["heads", "pseudo"])
def test_a_method_and_a_space_that_varies_it_do_not_go_together(image_folder, space):
    asked = options(image_folder, method="devnet").model_copy(update={"space": space})
    with pytest.raises(ConfigError, match=rf"--method devnet sets .*, which space {space} varies"):
        make_plan(asked, has_gpu=False)


def test_the_space_of_a_method_starts_from_what_that_has_for_the_profile(tmp_path, monkeypatch):
    def base(space, profile):
        return base_config(SearchOptions(space=space), profile)

    ssm = base("ssm", "gpu")
    assert (ssm.method.width, ssm.method.score_cells, ssm.data.image_size) == (64, "2,4,8", 448)
    # what it searches is the space's, and what makes a published name is that of --method
    assert base("saoe", "cpu").optim.lr == load_profile("cpu").optim.lr
    assert (base("kdad", "cpu").model.backbone, base("kdad", "cpu").data.image_size) == ("efficientnet_lite0", 160)
    # a file of that name goes first
    (tmp_path / "ssm").write_text("parameters:\n  data.balance: {values: [0.5, 0.6]}\n")
    monkeypatch.chdir(tmp_path)
    assert base("ssm", "gpu") == load_profile("gpu").override({"data.selection": "auto"})


def test_a_method_and_a_space_that_sets_it_otherwise_do_not_go_together(image_folder, tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("parameters:\n  optim.gamma: {values: [0.1, 0.5]}\nset: {data.balance: 0.6}\n")
    asked = options(image_folder, method="devnet", selection="extra").model_copy(update={"space": str(path)})
    with pytest.raises(ConfigError, match=r"sets data\.balance=0\.5, and space space sets it to 0\.6"):
        make_plan(asked, has_gpu=False)
    path.write_text("parameters:\n  optim.gamma: {values: [0.1, 0.5]}\nset: {data.balance: 0.5}\n")
    assert make_plan(asked, has_gpu=False).space.base.model.heads == "single_head"


@pytest.mark.parametrize(("method", "space"), [("mlep_image", "mlep"), ("saoe_no_outliers", "saoe")])
def test_a_space_may_vary_what_a_method_has_for_a_profile_of_ours(method, space):
    asked = SearchOptions(space=space, name="s", profile="cpu", data="x", method=method)
    base = base_config(asked, "cpu")
    assert base.optim.lr == method_values(method, "cpu")["optim.lr"]
    assert "optim.lr" in search_space(asked, "cpu", base).by_name
    with pytest.raises(ConfigError, match=rf"--method {method} sets .*, which space {space} varies"):
        search_space(asked, "paper", base_config(asked, "paper"))


def test_what_the_setting_leaves_out_of_the_space_is_said(image_folder):
    asked = options(image_folder, setting="anomaly-free").model_copy(update={"space": "pseudo"})
    plan = make_plan(asked, has_gpu=False)
    assert any("model.heads=single_head, augment.kind=none" in line for line in plan.warnings)


@pytest.mark.parametrize("field", ["data.selection_limit", "budget.epochs", "model.weights", "data.n_anomalies"])
def test_what_all_trials_must_share_cannot_vary(image_folder, tmp_path, field):
    values = {"model.weights": '["imagenet", "random"]'}.get(field, "[5, 6]")
    path = tmp_path / "space.yaml"
    path.write_text(f"parameters:\n  {field}: {{values: {values}}}\n")
    with pytest.raises(SpaceError, match="same for all trials"):
        make_plan(options(image_folder).model_copy(update={"space": str(path)}), has_gpu=False)


def test_weights_that_do_not_fit_are_refused_at_once(image_folder, tmp_path, monkeypatch):
    import torch

    save_file({"wrong": torch.zeros(1)}, tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="do not fit"):
        make_plan(options(image_folder, overrides={"model.weights": "w.safetensors"}), has_gpu=False)


def test_relative_paths_are_made_absolute(image_folder, tmp_path, monkeypatch):
    from sctune.backbones.weights import read_state, resolve_weights

    state = read_state(resolve_weights("efficientnet_lite0", "imagenet"))
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    asked = options(image_folder, overrides={"model.weights": "w.safetensors"}, storage="sqlite:///rel.db")
    manifest = make_plan(asked, has_gpu=False).manifest
    assert manifest.trial_config().model.weights == str(tmp_path / "w.safetensors")
    assert manifest.storage_url == f"sqlite:///{tmp_path / 'rel.db'}"


def test_changed_data_or_versions_stop_a_resume(image_folder, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(image_folder, folder)
    plan = make_plan(options(folder, selection="extra"), has_gpu=False)
    assert study_splits(plan.manifest).keys() == plan.splits.keys()
    (folder / "train/good/049.png").unlink()
    with pytest.raises(DataError, match="not those that study s began with"):
        study_splits(plan.manifest)
    check_versions(Study(tmp_path, plan.manifest))
    other = plan.manifest.model_copy(update={"versions": {**plan.manifest.versions, "torch": "1.0"}})
    with pytest.raises(StudyError, match=r"torch 1\.0 then"):
        check_versions(Study(tmp_path, other))


def test_profile_paper_needs_its_selection_said_aloud(image_folder):
    with pytest.raises(ConfigError, match="--selection test"):
        make_plan(options(image_folder).model_copy(update={"profile": "paper"}), has_gpu=False)
