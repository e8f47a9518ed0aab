"""The dry run times what takes longest, and says what that was."""

from __future__ import annotations

import gc
import pickle
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sctune.config import load_profile
from sctune.errors import SctuneError, WeightsError
from sctune.methods import room
from sctune.methods.room import Room, Share
from sctune.search.cluster.connection import Resources
from sctune.search.plan.dearest import dearest_points
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.plan import Plan, make_plan
from sctune.search.run import dryrun
from sctune.search.run import probe as module
from sctune.search.run.dryrun import costed, reference_seconds, time_methods
from sctune.search.run.plan_lines import plan_lines
from sctune.search.run.probe import Probe, Timed, Trial, beside, peak_bytes, probe, probe_apart, timed_at
from sctune.search.space.definition import Space, Values, load_space
from sctune.train.trainer import Trainer

HEADS = {"values": ["single_head", "two_head_patch", "four_head", "two_head_latent"]}
RESOURCES = Resources(2, 0, 1, 0, 2, 1)
KINDS = {"values": ["none", "cutmix", "saliencycut"]}


def make_space(folder: Path, **content: Any) -> Space:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_space(path, load_profile("cpu"))


def dearest_point(space: Space) -> Values:
    """Of a space of one method."""
    (point,) = dearest_points(space).values()
    return point


def timed(plan: Plan, told: Probe) -> Timed:
    """What the dry run knows of a plan of one method by then."""
    point = dearest_point(plan.space)
    return timed_at(plan.space.config(point), point, told, len(plan.manifest.tasks))


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


@pytest.mark.parametrize(
    ("field", "values", "dearest"),
    [
        ("method.updates", ["shared", "each"], "each"),
        ("method.members", ["cutpaste", "confetti,cutpaste", "turned"], "confetti,cutpaste"),
    ],
)
def test_a_methods_own_fields_make_an_epoch_long(tmp_path: Path, field: str, values: list[str], dearest: str) -> None:
    space = make_space(tmp_path, parameters={field: {"values": values}}, set={"method.name": "saoe"})
    assert dearest_point(space) == {field: dearest}


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
        def __init__(self, config: Any, task: Any, *, cache: Any, split: Any, objective: Any) -> None:
            made.append(config)
            super().__init__(config, task, cache=cache, split=split, objective=objective)

    monkeypatch.setattr(trainer, "Trainer", Seen)
    options = SearchOptions(space="heads", name="s", profile="smoke", data=str(image_folder), selection="extra")
    plan = make_plan(options, has_gpu=False)
    point, (task, *_) = dearest_point(plan.space), plan.manifest.tasks
    told = probe(Trial(plan.space.config(point), task, plan.splits[task.key], "auroc", torch.get_num_threads()))
    assert [(config.model.heads, config.augment.kind) for config in made] == [("two_head_latent", "saliencycut")]
    assert min(told[:5]) > 0
    assert told.checkpoint_bytes > told.weights_bytes
    run = costed(plan, Resources(2, 0, 1, 0, 2, 1), [timed(plan, told)])
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

    def seconds(_: Plan, name: str) -> float:
        order.append(name)
        return 1.0

    def probed(_: Trial) -> Probe:
        order.append("probe")
        return Probe(1.0, 1.0, 1.0, 1, 1)

    monkeypatch.setattr(dryrun, "planned", lambda _: nullcontext((asked, Resources(2, 0, 1, 0, 2, 1))))
    monkeypatch.setattr(dryrun, "reference_seconds", seconds)
    monkeypatch.setattr(dryrun, "probe_apart", probed)
    dryrun.dry_run(SearchOptions(name="s"))
    assert order == ["one", "two", "probe"]


def test_the_time_has_start_and_end(plan: Plan) -> None:
    mib = 2**20
    one = timed(plan, Probe(10.0, 10.0, 5.0, 1, 1, memory_bytes=700 * mib, gpu_bytes=30 * mib))
    run = costed(plan, Resources(2, 0, 1, 0, 2, 1), [one], 8.0, 2.0)
    told = run.to_dict()
    budget = plan.space.base.budget
    assert "memory: 700 MiB and 30 MiB of the GPU a trial, Ray's own aside" in run.lines
    assert (told["memory_bytes"], told["gpu_bytes"]) == (700 * mib, 30 * mib)
    assert told["study_seconds"] == told["most_seconds"]
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
    resources, one = Resources(2, 0, 1, 0, concurrent, 1), timed(plan, Probe(1.0, 1.0, 1.0, 1, 1))
    changes = {"references": ("one", "two"), "time_budget_s": budget}
    asked = replace(plan, manifest=plan.manifest.model_copy(update=changes))
    without = costed(plan, resources, [one]).to_dict()
    told = costed(asked, resources, [one], references=[10.0, 5.0])
    assert told.to_dict()["references_seconds"] == seconds
    assert told.study_seconds == pytest.approx(without["study_seconds"] + seconds)
    assert without["references_seconds"] == 0
    assert any(f"for start and end and {seconds:.0f} s for references, " in line for line in told.lines)
    most = {None: f"{4 // concurrent} min", 100.0: "10 s", 20.0: "2 s"}[budget]
    assert f"before the trials: one, two (references, which train nothing), {most} at most" in told.lines


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
    resources = Resources(2, 0, 1, 0, 2, 1)

    def told(weights: int, checkpoint: int, trials: int = 4) -> tuple[dict[str, Any], str]:
        manifest = plan.manifest.model_copy(update={"trials": trials})
        one = timed(plan, Probe(1.0, 1.0, 1.0, weights * mib, checkpoint * mib))
        run = costed(replace(plan, manifest=manifest), resources, [one])
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


def test_each_method_is_timed_at_its_own_dearest_point(tmp_path: Path) -> None:
    variants = {"bank": {"method.name": "patch_bank"}, "heads": {"method.name": "deviation"}}
    parameters = {
        "method.bank_size": {"values": [1000, 8000, 2000], "when": {"variant": "bank"}},
        "model.heads": {"values": ["four_head", "single_head"], "when": {"variant": "heads"}},
    }
    space = make_space(tmp_path, variants=variants, parameters=parameters)
    assert dearest_points(space) == {
        "patch_bank": {"variant": "bank", "method.bank_size": 8000},
        "deviation": {"variant": "heads", "model.heads": "four_head"},
    }


def test_a_space_of_several_methods_costs_their_mean_and_at_most_the_dearest(plan: Plan) -> None:
    mib = 2**20
    slow = Timed("slow", {"variant": "slow"}, Probe(2.0, 6.0, 9.0, 1, 30 * mib, None, 400 * mib), 4, 2, 1)
    fast = Timed("fast", {"variant": "fast"}, Probe(3.0, 1.0, 5.0, 5 * mib, 1, None, 900 * mib), 1, 1, 1)
    # 4 trials, 2 at a time
    run = costed(plan, RESOURCES, [fast, slow], problems={"lost": "no weights"})
    turn = {one.method: one.trial_seconds for one in (slow, fast)}
    assert turn["slow"] - turn["fast"] == 4 * (2 * 2.0 + 6.0) - (3.0 + 1.0)
    around = run.start_seconds + run.end_seconds
    assert run.study_seconds == pytest.approx(around + (turn["slow"] + turn["fast"]))
    assert run.most_seconds == pytest.approx(around + 2 * turn["slow"])
    assert run.end_seconds > 9.0 and run.checkpoint_bytes == 30 * mib
    told = run.to_dict()
    assert told["timed"] == {"variant": "slow"} and told["not_timed"] == {"lost": "no weights"}
    assert {name: one["memory_bytes"] for name, one in told["methods"].items()} == {
        "fast": 900 * mib,
        "slow": 400 * mib,
    }
    # what a node must have is that of the method with most
    assert told["memory_bytes"] == 900 * mib
    assert any(line.startswith("fast: a trial 6 s and 900 MiB; one step 3.00 s, ") for line in run.lines), run.lines
    assert "lost: cannot be timed: no weights" in run.lines
    (line,) = [line for line in run.lines if line.startswith("expected time: about ")]
    assert " where each method gets an equal share of the trials, " in line and " where all are slow, with " in line


def test_a_method_that_cannot_be_timed_leaves_the_others(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = {name: {"method.name": name} for name in ("gaussian", "deviation")}
    asked = replace(plan, space=make_space(tmp_path, variants=variants))
    lost = {"gaussian"}

    def probed(trial: Trial) -> Probe:
        if trial.config.method.name in lost:
            raise WeightsError("weights are away")
        return Probe(1.0, 1.0, 1.0, 1, 1)

    monkeypatch.setattr(dryrun, "probe_apart", probed)
    found, problems = time_methods(asked, 1)
    assert [one.method for one in found] == ["deviation"] and problems == {"gaussian": "weights are away"}
    lost.add("deviation")
    with pytest.raises(WeightsError, match="weights are away"):
        time_methods(asked, 1)


@pytest.mark.parametrize("most", [2**40, 0])
def test_tasks_side_by_side_take_memory_each(plan: Plan, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """State and selection images of each, and what they keep of images as far as there is room for it."""
    (task,) = plan.manifest.tasks
    whole = Room(2**40)
    monkeypatch.setattr(room, "HOST", whole)
    monkeypatch.setattr(module, "HOST", whole)
    config = plan.space.base.override({"model.weights": "random", "model.freeze": 6, "runtime.device": "cpu"})
    trainer = Trainer(config, task, split=plan.splits[task.key])
    trainer.selection.evaluate(trainer.method.scorer())
    kept = whole.held
    whole.most = max(most, kept)
    assert kept > 0
    images = trainer.selection.images.nbytes + sum(one.nbytes for one in trainer.selection.proxy.values())
    assert beside(trainer, 1000, 0) == (0, 0)
    assert beside(trainer, 1000, 3) == (3 * (1000 + images + (kept if most else 0)), 0)


def test_tasks_that_find_no_room_are_timed_as_such(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = plan.manifest.tasks
    held = 1000

    class Keeping(Trainer):
        """A step takes 1 s, or 5 s where nothing can be kept."""

        def time_step(self) -> tuple[float, int]:
            self.share = Share(held)
            return (1.0, 7) if self.share.take(held) else (5.0, 7)

    whole = Room(0)
    monkeypatch.setattr("sctune.train.trainer.Trainer", Keeping)
    for where in (module, room):
        monkeypatch.setattr(where, "HOST", whole)
    # no more than what one task asks for, twice, or thrice
    monkeypatch.setattr(whole, "allow", lambda most: None)
    config = plan.space.base.override({"model.weights": "random", "model.freeze": 0})
    for most, expected in ((held, 1 + 2 / 3 * 4), (2 * held, 1 + 1 / 3 * 4), (3 * held, 1.0)):
        whole.most = most
        told = probe(Trial(config, task, plan.splits[task.key], "auroc", torch.get_num_threads(), tasks=3))
        assert (told.step_seconds, told.steps) == (pytest.approx(expected), 7)
        gc.collect()


def test_the_memory_is_that_of_a_process_of_its_own(plan: Plan) -> None:
    (task,) = plan.manifest.tasks
    config = plan.space.base.override({"method.name": "gaussian", "model.weights": "random"})
    trial = Trial(config, task, plan.splits[task.key], "auroc", 1)
    ballast = bytearray(400 * 2**20)
    ballast[:: 2**10] = b"x" * (400 * 2**10)
    told = probe_apart(trial)
    # torch alone takes more than the one, and none of this process's memory is counted
    assert 100 * 2**20 < told.memory_bytes < peak_bytes()
    assert len(ballast) < peak_bytes() and told.gpu_bytes == 0 and told.step_seconds > 0


@pytest.mark.parametrize(
    ("code", "answer", "errors", "kind", "message"),
    [
        (0, pickle.dumps(WeightsError("no weights")), b"", WeightsError, "^no weights$"),
        (-9, b"", b"", SctuneError, "ended by signal 9; .* ran out of memory"),
        (1, b"", b"Traceback\nRuntimeError: odd\n", SctuneError, "its process failed: RuntimeError: odd$"),
        (3, b"", b"", SctuneError, "its process failed: exit code 3$"),
    ],
)
def test_what_a_process_of_its_own_tells(
    monkeypatch: pytest.MonkeyPatch, code: int, answer: bytes, errors: bytes, kind: type[Exception], message: str
) -> None:
    done = subprocess.CompletedProcess([], code, answer, errors)
    monkeypatch.setattr("sctune.search.run.probe.subprocess.run", lambda *_, **__: done)
    monkeypatch.setattr("sctune.search.run.probe.pickle.dumps", lambda _: b"")
    with pytest.raises(kind, match=message):
        probe_apart(Trial(load_profile("smoke"), None, None, "auroc", 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parameters", "variants", "expected"),
    [
        ({"optim.lr": {"values": [1e-4, 1e-3]}}, {}, "; 6 epochs x 20 iterations x 18 images of 160 px"),
        ({}, {"kdad": {"method.name": "kdad"}}, "; 6 epochs x 50 updates x 18 images of 160 px"),
        (
            {},
            {"kdad": {"method.name": "kdad", "method.total_updates": "pass"}},
            "; 6 epochs, each once over the normal images, x 18 images of 160 px",
        ),
        (
            {},
            {"kdad": {"method.name": "kdad"}, "ours": {"method.name": "deviation"}},
            "; 6 epochs, each method in steps of its own, images of 160 px",
        ),
    ],
)
def test_the_plan_says_how_long_a_trial_trains(
    plan: Plan, tmp_path: Path, parameters: dict[str, Any], variants: dict[str, Any], expected: str
) -> None:
    content = {"parameters": parameters, "variants": variants}
    space = make_space(tmp_path, **{key: value for key, value in content.items() if value})
    (line,) = [one for one in plan_lines(replace(plan, space=space), RESOURCES) if one.startswith("tasks: ")]
    assert line.endswith(expected)
