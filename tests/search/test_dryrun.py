"""The dry run times what takes longest, and says what that was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sctune.config import load_profile
from sctune.search.cluster.connection import Resources
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.plan import Plan, make_plan
from sctune.search.run import dryrun
from sctune.search.run.dryrun import Probe, _probe, costed, dearest_point, reference_seconds
from sctune.search.space.definition import Space, load_space

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
        ("pseudo", {"model.heads": "four_head", "augment.kind": "saliencycut", "model.reference_count": 10}),
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
        ({"score.turns": {"values": [1, 4]}}, {"score.turns": 4}),
        (
            {
                "model.density_trunk": {"values": ["trained", "frozen"]},
                "model.normal_head": {"values": ["mlp", "gaussian"]},
            },
            {"model.normal_head": "gaussian", "model.density_trunk": "trained"},
        ),
        (
            {
                "model.density_features": {"values": ["cells", "pooled"]},
                "model.density_components": {"values": [2, 5, 3]},
                "model.normal_head": {"values": ["mixture", "mlp", "gaussian"]},
            },
            {"model.normal_head": "mixture", "model.density_features": "cells", "model.density_components": 5},
        ),
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
        def __init__(self, config: Any, task: Any, *, split: Any, objective: Any) -> None:
            made.append(config)
            super().__init__(config, task, split=split, objective=objective)

    monkeypatch.setattr(trainer, "Trainer", Seen)
    options = SearchOptions(space="heads", name="s", profile="smoke", data=str(image_folder), selection="extra")
    plan = make_plan(options, has_gpu=False)
    point = dearest_point(plan.space)
    probe = _probe(plan, point)
    assert [(config.model.heads, config.augment.kind) for config in made] == [("two_head_latent", "saliencycut")]
    assert min(probe) > 0
    assert probe.checkpoint_bytes > probe.weights_bytes
    run = costed(plan, Resources(2, 0, 1, 0, 2, 1), point, probe)
    assert any(line.endswith(", timed at model.heads=two_head_latent, augment.kind=saliencycut") for line in run.lines)
    assert run.to_dict()["timed"] == point


@pytest.fixture(scope="module")
def plan(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    """Of 4 trials in the profile `smoke`, whose three best keep their checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCTUNE_HOME", str(tmp_path_factory.mktemp("home")))
        options = SearchOptions(name="s", profile="smoke", data=str(image_folder), selection="extra", trials=4)
        yield make_plan(options, has_gpu=False)


def test_references_are_timed_before_the_probe(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A density of the probe would leave the features on disk that a reference looks for."""
    asked = replace(plan, manifest=plan.manifest.model_copy(update={"references": ("one", "two")}))
    order: list[str] = []

    def timed(_: Plan, name: str) -> float:
        order.append(name)
        return 1.0

    def probed(*_: Any) -> Probe:
        order.append("probe")
        return Probe(1.0, 1.0, 1.0, 1, 1)

    monkeypatch.setattr(dryrun, "planned", lambda _: nullcontext((asked, Resources(2, 0, 1, 0, 2, 1))))
    monkeypatch.setattr(dryrun, "reference_seconds", timed)
    monkeypatch.setattr(dryrun, "_probe", probed)
    dryrun.dry_run(SearchOptions(name="s"))
    assert order == ["one", "two", "probe"]


def test_the_time_has_start_and_end(plan: Plan) -> None:
    point, resources = dearest_point(plan.space), Resources(2, 0, 1, 0, 2, 1)
    run = costed(plan, resources, point, Probe(10.0, 10.0, 5.0, 1, 1), 8.0, 2.0)
    told = run.to_dict()
    budget = plan.space.config(point).budget
    trials = 2 * budget.epochs * 10.0 * (budget.iterations + 1)
    assert told["start_seconds"] > 8 and told["end_seconds"] > 7
    assert told["study_seconds"] > told["start_seconds"] + trials + told["end_seconds"]
    (line,) = [line for line in run.lines if line.startswith("expected time: about ")]
    assert f", with {told['start_seconds'] + told['end_seconds']:.0f} s for start and end, " in line


@pytest.mark.parametrize(
    ("concurrent", "budget", "seconds"), [(2, None, 10.0), (1, None, 15.0), (1, 100.0, 10.0), (4, 20.0, 2.0)]
)
def test_references_are_counted(plan: Plan, concurrent: int, budget: float | None, seconds: float) -> None:
    """10 s and 5 s, side by side or after each other, and no more than a tenth of the budget."""
    point, resources = dearest_point(plan.space), Resources(2, 0, 1, 0, concurrent, 1)
    probe = Probe(1.0, 1.0, 1.0, 1, 1)
    changes = {"references": ("one", "two"), "time_budget_s": budget}
    asked = replace(plan, manifest=plan.manifest.model_copy(update=changes))
    without = costed(plan, resources, point, probe).to_dict()
    told = costed(asked, resources, point, probe, references=[10.0, 5.0])
    assert told.to_dict()["references_seconds"] == seconds
    assert told.study_seconds == pytest.approx(without["study_seconds"] + seconds)
    assert without["references_seconds"] == 0
    assert any(f"for start and end and {seconds:.0f} s for references, " in line for line in told.lines)
    assert "before the trials: one, two (references, which train nothing)" in told.lines


@pytest.mark.parametrize("broken", [False, True])
def test_a_reference_is_timed_as_the_search_runs_it(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    from sctune.train import trainer

    made: list[Any] = []

    class Seen(trainer.Trainer):
        def run_epoch(self) -> Any:
            made.append(self.config)
            if broken:
                raise RuntimeError("a fault of the method")
            return super().run_epoch()

    monkeypatch.setattr(trainer, "Trainer", Seen)
    options = SearchOptions(
        name="s",
        profile="smoke",
        data=str(image_folder),
        selection="extra",
        references=True,
        overrides={"model.weights": "random"},
    )
    seconds = reference_seconds(make_plan(options, has_gpu=False), "gaussian")
    (config,) = made
    assert (config.method.name, config.model.backbone, config.epochs) == ("gaussian", "efficientnet_lite0", 1)
    assert (seconds == 0) == broken


def test_the_disk_has_figures_and_copies(plan: Plan) -> None:
    mib = 2**20
    point, resources = dearest_point(plan.space), Resources(2, 0, 1, 0, 2, 1)

    def told(weights: int, checkpoint: int, trials: int = 4) -> tuple[dict[str, Any], str]:
        manifest = plan.manifest.model_copy(update={"trials": trials})
        probe = Probe(1.0, 1.0, 1.0, weights * mib, checkpoint * mib)
        run = costed(replace(plan, manifest=manifest), resources, point, probe)
        return run.to_dict(), run.lines[-1]

    small, line = told(10, 12)
    files = small["files_bytes"]
    assert small["checkpoint_bytes"] == 12 * mib and small["checkpoints_bytes"] == (2 * 2 + 3) * 12 * mib
    assert small["study_bytes"] == small["checkpoints_bytes"] + files
    assert line == (
        f"disk: 12 MiB per checkpoint, 84 MiB of checkpoints + {files / mib:.0f} MiB of figures, record and MLflow's "
        f"copies = {small['study_bytes'] / mib:.0f} MiB in all"
    )
    # the study's folder, the best trial's run, the registered model
    assert told(30, 12)[0]["files_bytes"] == files + 3 * 20 * mib
    assert told(10, 12, trials=1000)[0]["files_bytes"] > files
