"""How trials share cards by what their classes need: hand calculations, and what the controller hands out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sctune.config import load_profile
from sctune.metrics.objective import AUROC
from sctune.pages.reading import cost_of
from sctune.report import OBJECTIVE, EpochReport, Origin, TrialFailure
from sctune.search.cluster.connection import fits
from sctune.search.cluster.resources import TrialResources
from sctune.search.run.controller import Assignment, TrialController
from sctune.search.run.faults import Faults
from sctune.search.run.measuring import MOST_CLASSES, largest_points
from sctune.search.run.packing import MOST_PER_CARD, Cards, MemoryClass, Packing, held_by, share_of
from sctune.search.study.leaderboard import leaderboard
from sctune.search.study.manifest import CardNeed, ResourceSpec, manifest_of
from sctune.search.study.study import Study
from sctune.train.card import CONTEXT_BYTES, tensor_limit
from tests.builders import make_manifest, make_space

GIB = 2**30
WHOLE = TrialResources(1.0, 1.0)
ANY = {"model.weights": "random", "model.patch_place": "grid2d"}
CARD = {"node": ("big", 80 * GIB)}
SMALL = MemoryClass("deviation", "resnet18", 224, 2, 16)
LARGE = MemoryClass("deviation", "resnet18", 448, 2, 16)


def need(one: MemoryClass, peak: float | None, card: str = "big", total: int = 80, context: int = 0) -> CardNeed:
    """peak, total: GiB."""
    size = None if peak is None else int(peak * GIB)
    fields = {name: getattr(one, name) for name in ("method", "backbone", "image_size", "n_scales", "batch_size")}
    return CardNeed(**fields, card=card, card_bytes=total * GIB, peak_bytes=size, context_bytes=context)


def packing(*needs: CardNeed, cards: Cards = CARD, per_card: int = MOST_PER_CARD) -> Packing:
    return Packing(WHOLE, needs, cards, per_card)


def test_what_a_card_holds() -> None:
    # 1.2 x 20 + 0.75 = 24.75 GiB each, of 80
    assert held_by(need(SMALL, 20)) == 3
    # 1.2 x 32.7 + 0.75 = 39.99; a context of 1 GiB makes it 40.24
    assert held_by(need(SMALL, 32.7)) == 2
    assert held_by(need(SMALL, 32.7, context=GIB)) == 1
    # alone it ran, though the margin finds no room
    assert held_by(need(SMALL, 75)) == 1
    assert held_by(need(SMALL, None)) == 0


@pytest.mark.parametrize("trials", range(1, 9))
def test_shares_fill_a_card_and_no_more(trials: int) -> None:
    assert fits({"CPU": 64.0, "GPU": 1.0}, 1.0, share_of(trials)) == trials
    assert round(share_of(trials) * 10_000) * trials <= 10_000


def test_tensors_of_all_that_share_a_card_fit_beside_their_contexts() -> None:
    total = 24 * GIB
    for trials in range(2, 5):
        limit = tensor_limit(share_of(trials), total)
        assert limit is not None and trials * (limit + CONTEXT_BYTES) <= total
        # and each may take what it was given the share for
        peak = (total // trials - CONTEXT_BYTES - trials * total // 10_000) / 1.2
        assert peak * 1.2 <= limit
    assert tensor_limit(1.0, total) is None and tensor_limit(0.0, total) is None
    # a card so small that the context would take all of a share
    assert tensor_limit(0.25, 2 * GIB) == 256 * 2**20


def test_the_share_of_a_class() -> None:
    made = packing(need(SMALL, 20), need(LARGE, 32))
    assert made.share(SMALL) == 0.3333 and made.share(LARGE) == 0.5
    assert made.least == 0.3333
    # a class that nobody tried goes by a larger one's measure, or has a card of its own
    between = MemoryClass("deviation", "resnet18", 320, 1, 16)
    assert made.share(between) == 0.5
    assert made.share(MemoryClass("deviation", "resnet50", 224, 2, 16)) == 1.0
    assert made.share(MemoryClass("deviation", "resnet18", 448, 2, 32)) == 1.0
    assert packing().least == 1.0


def test_no_more_than_four_and_than_the_cpus_serve() -> None:
    tiny = need(SMALL, 0.1)
    assert packing(tiny).share(SMALL) == 0.25
    assert packing(tiny, per_card=2).share(SMALL) == 0.5
    assert packing(tiny, per_card=0).share(SMALL) == 1.0


def test_of_different_cards_the_one_that_holds_fewest_counts() -> None:
    cards = {"a": ("big", 80 * GIB), "b": ("small", 24 * GIB)}
    needs = need(SMALL, 15), need(SMALL, 10, "small", 24), need(LARGE, 32), need(LARGE, None, "small", 24)
    made = packing(*needs, cards=cards)
    # 4 on the big one, 1.2 x 10 + 0.75 = 12.75 of 24: one on the small
    assert made.share(SMALL) == 1.0
    # what does not fit on the small one goes to the big one alone, and by its measure
    assert made.share(LARGE) == 0.5
    base = load_profile("gpu").override({"budget.batch_size": 16, **ANY})
    assert MemoryClass.of(base) == LARGE
    assert made.avoided(base) == ("b",)
    assert made.avoided(base.override({"data.image_size": 224})) == ()
    # not where the big one has gone meanwhile; one that nobody knows may hold it
    gone = Packing(WHOLE, needs, cards, alive=lambda: {"b"})
    assert gone.avoided(base) == ()
    other = Packing(WHOLE, needs, cards, alive=lambda: {"b", "new"})
    assert other.avoided(base) == ("b",)
    # without the big ones nothing is avoided: the trial says itself what it lacks
    alone = packing(*needs, cards={"b": ("small", 24 * GIB)})
    assert alone.avoided(base) == () and alone.share(LARGE) == 1.0
    # that a larger class does not fit says nothing of a smaller one
    unknown = packing(need(LARGE, 32), need(LARGE, None, "small", 24), cards=cards)
    assert unknown.avoided(base.override({"data.image_size": 224})) == ()
    # and a card that is not there any more does not count
    assert packing(*needs, cards={"a": cards["a"]}).share(SMALL) == 0.25


def test_fields_that_a_method_does_not_look_at_make_no_class() -> None:
    base = load_profile("cpu")
    ssm = base.override({"method.name": "ssm"})
    assert MemoryClass.of(ssm).backbone == ""
    assert MemoryClass.of(ssm).n_scales == 0
    assert MemoryClass.of(base) == MemoryClass("deviation", "efficientnet_lite0", 160, 1, 18)


def test_classes_of_a_space_and_their_largest_points(tmp_path: Path) -> None:
    parameters = {
        "data.image_size": {"values": [160, 224]},
        "budget.batch_size": {"type": "int", "low": 6, "high": 24, "step": 6},
        "augment.kind": {"values": ["none", "saliencycut"]},
    }
    space = make_space(tmp_path, parameters=parameters, set=ANY)
    found = largest_points(space)
    # 18 a batch is nearly 24; each with the dearer pseudo anomalies, the longest epochs first
    sizes = [(one.image_size, one.batch_size) for one in found]
    assert sizes == [(224, 24), (160, 24), (224, 12), (160, 12), (224, 6), (160, 6)]
    assert {config.augment.kind for config in found.values()} == {"saliencycut"}
    many = {**parameters, "data.image_size": {"values": [64, 96, 128, 160, 224, 288, 384]}}
    assert len(largest_points(make_space(tmp_path, parameters=many, set=ANY))) == MOST_CLASSES


def test_what_was_measured_is_kept_with_the_study(tmp_path: Path) -> None:
    spec = ResourceSpec(gpus=1.0, packed=True, needs=(need(SMALL, 20), need(LARGE, None)))
    space = make_space(tmp_path, parameters={"data.image_size": {"values": [224, 448]}}, set=ANY)
    manifest = make_manifest(space, resources=spec)
    assert manifest_of(manifest.model_dump_json(), "here").resources == spec
    # one of before this was there
    old = manifest.model_dump(mode="json")
    del old["resources"]["packed"], old["resources"]["needs"]
    assert not manifest_of(json.dumps(old), "here").resources.packed


class Driven:
    """A controller over a study of trials of two classes, in the order of the grid: 224 px first, then 448 px."""

    def __init__(self, folder: Path, trials: int = 4) -> None:
        self.folder = folder
        base = load_profile("gpu").override({"budget.epochs": 3, "runtime.device": "cpu", "budget.batch_size": 16})
        parameters = {"data.image_size": {"values": [224, 448]}, "augment.threshold": {"values": [0.2, 0.4, 0.6]}}
        self.space = make_space(folder, base, parameters=parameters, set=ANY)
        manifest = make_manifest(self.space, sampler="grid", trials=trials)
        self.study = Study.create(folder / "studies", manifest)

    def controller(self, made: Packing | None) -> TrialController:
        judge = Faults(WHOLE, TrialResources(8.0, 1.0), lambda _: True)
        record = self.study.record
        return TrialController(self.study.manifest, self.space, record, (), judge, packing=made)


def started(controller: TrialController) -> Assignment:
    found = controller.next()
    assert found is not None
    return found


def report(epoch: int, reserved: float | None = None, node: str = "node") -> EpochReport:
    metrics = {OBJECTIVE: 0.5, "seconds": 3.0} | ({} if reserved is None else {"gpu_reserved_mb": reserved})
    return EpochReport(epoch, 3, metrics, {"seed42": [0.1]}, origin=Origin("h", node))


MEMORY = TrialFailure("out of memory", "CUDA out of memory")


def test_trials_begin_with_the_share_of_their_class(tmp_path: Path) -> None:
    driven = Driven(tmp_path)
    control = driven.controller(packing(need(SMALL, 20), need(LARGE, 32)))
    shares = {}
    for _ in range(4):
        one = started(control)
        shares[one.number] = one.params["data.image_size"], one.resources.gpus
    assert set(shares.values()) == {(224, 0.3333), (448, 0.5)}
    # without a packing all get what was asked for
    other = Driven(tmp_path / "other") if (tmp_path / "other").mkdir() is None else None
    assert other is not None and started(other.controller(None)).resources == WHOLE


def test_what_ran_out_comes_back_with_more_and_so_does_its_class(tmp_path: Path) -> None:
    driven = Driven(tmp_path, trials=3)
    made = packing(need(SMALL, 15), need(LARGE, 15))
    control = driven.controller(made)
    first = started(control)
    assert first.resources.gpus == 0.25
    second = started(control)
    control.failed(first.number, MEMORY)
    third = started(control)
    assert third.params["data.image_size"] == first.params["data.image_size"] == second.params["data.image_size"]
    assert third.resources.gpus == 0.5
    # the second one began with a quarter: it is judged by that, not by what its class gets now
    control.failed(second.number, MEMORY)
    control.failed(third.number, MEMORY)
    again = [started(control) for _ in range(3)]
    assert {one.number: one.resources.gpus for one in again} == {
        first.number: 1.0,
        second.number: 1.0,
        third.number: 1.0,
    }
    stored = {trial.number: trial.user_attrs["share"]["gpus"] for trial in driven.study.record.load()}
    assert stored == {first.number: 0.5, second.number: 0.5, third.number: 1.0}
    # a later launch knows it from the record
    later = driven.controller(packing(need(SMALL, 15), need(LARGE, 15)))
    assert {started(later).resources.gpus for _ in range(3)} == {1.0}


def test_the_first_trial_of_a_class_measures_it(tmp_path: Path) -> None:
    driven = Driven(tmp_path)
    learnt: list[CardNeed] = []
    control = driven.controller(Packing(WHOLE, (), CARD, on_need=learnt.append))
    first = started(control)
    assert first.resources.gpus == 1.0
    control.reported(first.number, report(1, reserved=20 * 1024))
    assert started(control).resources.gpus == 0.3333
    (found,) = learnt
    assert (found.card, found.card_bytes, found.peak_bytes) == ("big", 80 * GIB, 20 * GIB)
    assert MemoryClass.of_need(found) == MemoryClass.of(driven.space.config(first.params))
    # once for a class; and not from a worker that tells no memory, or a node whose cards nobody knows
    control.reported(first.number, report(2, reserved=30 * 1024))
    assert learnt == [found]
    nothing: list[CardNeed] = []
    other = Packing(WHOLE, (), CARD, on_need=nothing.append)
    other.learn(driven.space.base, "elsewhere", report(1, reserved=5.0))
    other.learn(driven.space.base, "node", report(1))
    assert nothing == []


def test_nodes_with_too_small_cards_are_avoided(tmp_path: Path) -> None:
    cards = {"a": ("big", 80 * GIB), "b": ("small", 24 * GIB)}
    tried = need(SMALL, 15), need(SMALL, 15, "small", 24), need(LARGE, 32), need(LARGE, None, "small", 24)
    control = Driven(tmp_path, trials=6).controller(packing(*tried, cards=cards))
    found = {(one.params["data.image_size"], one.avoid) for one in (started(control) for _ in range(6))}
    assert found == {(224, ()), (448, ("b",))}


def test_what_a_trial_took_is_kept_and_shown(tmp_path: Path) -> None:
    driven = Driven(tmp_path, trials=2)
    control = driven.controller(packing(need(SMALL, 20)))
    first = started(control)
    for epoch, memory in ((1, 3000.0), (2, 5000.0)):
        metrics = {OBJECTIVE: 0.5, "seconds": 4.0 * epoch, "gpu_reserved_mb": memory, "gpu_utilisation": 30.0 * epoch}
        control.reported(first.number, EpochReport(epoch, 3, metrics, {"seed42": [0.1]}))
    second = started(control)
    driven.study.record.flush()
    rows = {row.number: row for row in leaderboard(driven.study.record.load(), AUROC)}
    told = rows[first.number]
    assert (told.gpus, told.gpu_reserved_mb, told.gpu_memory_mb, told.gpu_utilisation) == (0.3333, 5000.0, None, 45.0)
    assert (told.seconds, told.epoch_seconds) == (12.0, 6.0)
    assert (rows[second.number].gpus, rows[second.number].epoch_seconds) == (0.3333, None)
    cost = cost_of(driven.study.manifest, driven.study.record.load(), 0.0)
    assert cost.gpu_hours == pytest.approx(0.3333 * 12 / 3600)
    # started again with more, it pays more
    control.failed(first.number, MEMORY)
    control.failed(second.number, MEMORY)
    started(control)
    driven.study.record.flush()
    (again,) = [row.gpus for row in leaderboard(driven.study.record.load(), AUROC) if row.number == first.number]
    assert again == 0.6666
