"""The trainer: same seed same numbers, bit-exact continuation, saliency without side effects, every setting."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from sctune.augment.cut import Cut
from sctune.config import Task
from sctune.data.batches import stream
from sctune.errors import CheckpointError, NonFiniteError
from sctune.report import OBJECTIVE
from sctune.train.trainer import Trainer

TIMES = ("seconds", "images_per_second")


def history(trainer):
    """Everything that a run reports, without times."""
    reports = list(trainer.fit())
    return [({k: v for k, v in r.metrics.items() if k not in TIMES}, dict(r.scores)) for r in reports]


def test_same_seed_same_numbers(tiny):
    assert history(Trainer(tiny)) == history(Trainer(tiny))


def test_same_seed_same_numbers_in_another_process(tiny):
    code = (
        "import sys, json; from sctune.config import TrialConfig; from sctune.train.trainer import Trainer\n"
        "trainer = Trainer(TrialConfig.load(json.load(sys.stdin)))\n"
        "print(json.dumps([r.scores for r in trainer.fit()]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], input=tiny.model_dump_json(), capture_output=True, text=True, check=True
    )
    import json

    assert json.loads(run.stdout) == [scores for _, scores in history(Trainer(tiny))]


@pytest.mark.parametrize("refresh", ["iteration", "epoch"])
def test_continued_after_any_epoch_equals_uninterrupted(tiny, refresh):
    config = tiny.override({"budget.epochs": 3, "augment.refresh": refresh, "model.patch_evaluation": "random"})
    whole = history(Trainer(config))
    for cut in (1, 2):
        first = Trainer(config)
        for _ in range(cut):
            first.run_epoch()
        tensors, meta = first.state()
        later = Trainer(config)
        later.load_state(tensors, meta)
        assert history(later) == whole[cut:]


def test_a_checkpoint_of_another_configuration_is_refused(tiny):
    tensors, meta = Trainer(tiny).state()
    with pytest.raises(CheckpointError, match="config differs"):
        Trainer(tiny.override({"optim.lr": 1e-3})).load_state(tensors, meta)
    with pytest.raises(CheckpointError, match="task differs"):
        Trainer(
            tiny,
            Task(source=tiny.data.source, seed=tiny.seed, category=None, fold=0, folds=2),
            split=Trainer(tiny).split,
        ).load_state(tensors, meta)


def test_saliency_leaves_the_model_untouched(tiny):
    trainer = Trainer(tiny)
    trainer.method.detector.train()
    before = {name: value.clone() for name, value in trainer.method.detector.state_dict().items()}
    images = torch.rand(3, 3, 64, 64)
    gradient, _ = trainer.method.step.saliency_gradient(images, 0)
    assert gradient.shape == images.shape and gradient.abs().sum() > 0
    assert all(torch.equal(before[name], value) for name, value in trainer.method.detector.state_dict().items())
    assert all(weight.grad is None for weight in trainer.method.detector.parameters())
    assert trainer.method.detector.training and trainer.method.detector.anomaly.training
    trained = [w.requires_grad for w in trainer.method.detector.parameters()]
    assert any(trained) and not all(trained)


def test_saliency_of_donors_alone_equals_that_of_the_whole_batch(tiny):
    trainer = Trainer(tiny)
    images = torch.rand(6, 3, 64, 64)
    whole, _ = trainer.method.step.saliency_gradient(images, 5)
    part, _ = trainer.method.step.saliency_gradient(images[2:4], 5)
    assert torch.allclose(whole[2:4], part, rtol=1e-4, atol=1e-7)


def test_loss_falls_and_anomalies_are_found(tiny):
    config = tiny.override(
        {
            "budget.epochs": 6,
            "budget.iterations": 6,
            "budget.batch_size": 18,  # with 6 images the loss of an epoch is mostly the draw of its batches
            "optim.lr": 1e-3,
            "model.freeze": 0,
            "optim.step_fraction": 1.0,
        }
    )
    reports = list(Trainer(config).fit())
    losses = [report.metrics["loss"] for report in reports]
    assert max(losses[1:]) < losses[0] and np.mean(losses[-3:]) < 0.95 * losses[0]
    assert all(0 <= r.value <= 1 for r in reports)


def test_mean_pasted_share_rises_with_the_threshold(tiny):
    shares = []
    for threshold in (0.2, 0.4, 0.6, 0.8):
        trainer = Trainer(tiny.override({"augment.threshold": threshold, "budget.epochs": 1, "budget.iterations": 3}))
        shares.append(trainer.run_epoch().metrics["pasted_fraction"])
    assert all(low < high for low, high in pairwise(shares)), shares


@pytest.mark.parametrize("setting", ["general", "hard", "anomaly-free"])
def test_all_three_settings_train(tiny, setting):
    known = "spot" if setting == "hard" else None
    config = tiny.override({"data.setting": setting, "data.known_class": known, "data.selection": "auto"})
    trainer = Trainer(config)
    last = history(trainer)[-1][0]
    assert 0 <= last[OBJECTIVE] <= 1
    if setting == "anomaly-free":
        makers = [last[f"selection_auroc_{name}"] for name in ("perlin", "warp", "blur")]
        assert last[OBJECTIVE] == pytest.approx(np.mean(makers))
        assert "selection_auroc_real" not in last
    if setting == "hard":
        assert {f.kind for f in trainer.split.train} == {"good", "spot"}
        assert "spot" not in {f.kind for f in trainer.split.test}


@pytest.mark.parametrize("heads", ["two_head_latent", "four_head", "single_head"])
@pytest.mark.parametrize("kind", ["saliencycut", "cutmix", "cutmix_pair", "cutpaste", "none"])
def test_every_head_trains_with_every_augmentation(tiny, heads, kind):
    config = tiny.override({"model.heads": heads, "augment.kind": kind, "model.reference_source": "training"})
    trainer = Trainer(config)
    before = {name: value.clone() for name, value in trainer.method.detector.state_dict().items()}
    first, second = history(trainer)
    assert 0 <= second[0][OBJECTIVE] <= 1
    moved = {
        name.split(".")[0]
        for name, value in trainer.method.detector.state_dict().items()
        if (value != before[name]).any()
    }
    expected = {*trainer.method.detector.roles, "backbone"}
    assert moved >= expected, "a head that does not learn"
    assert ("pasted_fraction" in first[0]) == (kind != "none")
    assert {name for name in first[0] if name.startswith("loss_")} == {
        f"loss_{name}" for name in trainer.method.detector.roles
    }
    # the same again, cut after the first epoch
    later, again = Trainer(config), Trainer(config)
    again.run_epoch()
    later.load_state(*again.state())
    assert history(later) == [second]


@pytest.mark.parametrize("kind", ["cutmix", "cutmix_pair", "cutpaste"])
@pytest.mark.parametrize("refresh", ["iteration", "epoch"])
def test_makers_change_pseudo_slots_alone(tiny, kind, refresh):
    """The batch of a step against the same step without pasting: equal but in slots labelled 2, and not there."""
    config = tiny.override(
        {"augment.kind": kind, "augment.refresh": refresh, "augment.rotation_degrees": 0.0, "budget.batch_size": 24}
    )
    step = Trainer(config).method.step
    step.start_epoch(0)
    batch = step.batch(0)
    step.pseudo.maker = lambda receivers, donors, augment, generator: Cut(receivers, torch.zeros_like(donors[:, :1]))
    step.pseudo.bank = None
    plain = step.batch(0)
    assert torch.equal(batch.labels, plain.labels) and set(batch.labels.tolist()) == {0, 1, 2}
    changed = (batch.images != plain.images).flatten(1).any(dim=1)
    assert torch.equal(changed, batch.labels == 2)
    share = (batch.images != plain.images).any(dim=1).float().mean(dim=(1, 2))[batch.labels == 2]
    if refresh == "iteration":
        assert share.max() <= 0.5  # a region, not the picture
        assert batch.metrics["pasted_fraction"] >= share.mean() - 1e-6


@pytest.mark.parametrize("refresh", ["iteration", "epoch"])
def test_a_pair_is_never_one_image(tiny, refresh):
    """CutMix of an image with itself would call an untouched normal image an anomaly."""
    few = {"augment.kind": "cutmix_pair", "augment.allow_self": True, "augment.refresh": refresh}
    source = Trainer(tiny.override(few | {"budget.batch_size": 24})).method.step
    pairs = []
    maker = source.pseudo.maker

    def remember(receivers, donors, augment, generator):
        pairs.extend(zip(receivers.clone(), donors.clone(), strict=True))
        return maker(receivers, donors, augment, generator)

    source.pseudo.maker = remember
    # few normals, so that some pair would meet itself by chance
    source.images = source.pseudo.images = replace(source.images, normals=source.images.normals[:4])
    for number in range(4):
        source.start_epoch(number)
        source.batch(number)
    assert len(pairs) > 10
    assert not any(torch.equal(receiver, donor) for receiver, donor in pairs)


def test_references_are_clean_normals_that_stay(tiny):
    trainer = Trainer(tiny.override({"model.heads": "two_head_latent", "model.reference_count": 4}))
    before = trainer.method.detector.references.clone()
    list(trainer.fit())
    assert torch.equal(trainer.method.detector.references, before)
    images = trainer.method.step.images
    normals = {images.array[row].tobytes() for row in images.normals}
    assert {reference.numpy().tobytes() for reference in before} <= normals and len(before.unique(dim=0)) == 4


def test_references_as_dra_has_them_are_drawn_anew(tiny):
    config = tiny.override(
        {
            "model.heads": "four_head",
            "augment.kind": "cutmix",
            "model.reference_source": "training",
            "model.reference_count": 40,
            "augment.rotation_degrees": 0.0,
        }
    )
    trainer = Trainer(config)
    before = trainer.method.detector.references.clone()
    trainer.run_epoch()
    after = trainer.method.detector.references
    assert not torch.equal(after, before)
    images = trainer.method.step.images
    normals = {images.array[row].tobytes() for row in images.normals}
    clean = sum(reference.numpy().tobytes() in normals for reference in after)
    assert 8 <= clean <= 32  # half of 40 are pseudo anomalies


def test_shuffled_labels_keep_the_batch_and_lose_its_meaning(tiny):
    config = tiny.override({"data.shuffle_labels": True, "budget.epochs": 1, "budget.iterations": 1})
    seen = []
    trainer = Trainer(config)
    update = trainer.method.step._update
    trainer.method.step._update = lambda images, labels, number: seen.append(labels) or update(images, labels, number)
    for number in range(20):
        trainer.method.step.run(number)
    own = torch.stack([trainer.method.step.batch(number).labels for number in range(20)])
    shuffled = torch.stack(seen)
    assert torch.equal(own.sort(dim=1).values, shuffled.sort(dim=1).values)
    agree = (own == shuffled).float().mean()
    assert 0.2 < agree < 0.6  # three labels at random: about .37


def test_dra_lowers_the_rate_when_an_epoch_begins(tiny):
    config = tiny.override(
        {"budget.epochs": 6, "budget.iterations": 1, "optim.step_fraction": 0.5, "optim.step_when": "start"}
    )
    rates = [metrics["lr"] for metrics, _ in history(Trainer(config))]
    assert rates == pytest.approx([2e-4] * 2 + [2e-5] * 3 + [2e-6])


def test_a_loss_that_is_no_number_ends_the_trial(tiny):
    with pytest.raises(NonFiniteError, match="epoch 1"):
        Trainer(
            tiny.override({"optim.lr": 1.0, "optim.clip_norm": 1e30, "budget.iterations": 40, "loss.margin": 1e38})
        ).run_epoch()


def test_learning_rate_follows_the_fraction_of_the_epochs(tiny):
    config = tiny.override({"budget.epochs": 6, "budget.iterations": 1, "optim.step_fraction": 0.5, "optim.gamma": 0.1})
    rates = [metrics["lr"] for metrics, _ in history(Trainer(config))]
    assert rates == pytest.approx([2e-4] * 3 + [2e-5] * 3)


def test_streams_are_independent_of_each_other():
    draws = {float(torch.rand(1, generator=stream(1, name, step))) for name in "ab" for step in range(5)}
    assert len(draws) == 10
