"""CutPaste: what its batches hold, how it learns, and the Gaussian of its features, by hand and by scikit-learn."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from sctune.augment.cut import Cut
from sctune.backbones.trunk import build_backbone
from sctune.config import TrialConfig, load_profile
from sctune.deploy.export import generated_images
from sctune.deploy.parity import score_parity
from sctune.errors import CheckpointError, ConfigError, DataError, NonFiniteError, StoppedError
from sctune.methods.base import TaskImages
from sctune.methods.cutpaste import features as kept_features
from sctune.methods.cutpaste.entry import ENTRY, batch_norm, batch_parts
from sctune.methods.cutpaste.method import CutPasteMethod
from sctune.methods.cutpaste.pretext import Pretext
from sctune.methods.named import method_values
from sctune.methods.pixels import normalise
from sctune.methods.registry import fresh_method, trained_method
from sctune.methods.untrained.extractor import FrozenChoice
from sctune.search.space.definition import load_space
from sctune.train.gallery import pseudo_examples
from sctune.train.heatmap import heat_maps
from sctune.train.trainer import Trainer

CPU = torch.device("cpu")
STILL = {"method.shift": 0.0, "method.jitter": 0.0}
VARIANTS = {"3way": ("normal", "scar"), "union": ("union",), "normal": ("normal",), "scar": ("scar",)}
MAX_SCAR = 0.012
"""Share of an image; the largest scar has less, the smallest patch has more."""


@pytest.fixture(scope="module")
def config(tiny: TrialConfig) -> TrialConfig:
    few = {"method.name": "cutpaste", "method.total_updates": 4}
    return tiny.override({**few, "model.weights": "imagenet", "model.freeze": 6})


@pytest.fixture(scope="module")
def trainer(config: TrialConfig) -> Trainer:
    found = Trainer(config)
    list(found.fit())
    return found


@pytest.fixture(scope="module")
def noise() -> TaskImages:
    """Twelve normal images whose pixels all differ, and five anomalies, behind a row that is neither."""
    array = np.random.default_rng(3).integers(0, 256, (18, 64, 64, 3), np.uint8)
    return TaskImages(array, np.arange(1, 13), np.arange(13, 18))


def method_of(trainer: Trainer) -> CutPasteMethod:
    assert isinstance(trainer.method, CutPasteMethod)
    return trainer.method


def images_of(trainer: Trainer) -> TaskImages:
    return method_of(trainer).training.pretext.images


def pixels_of(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255


def boxes(different: Tensor) -> list[tuple[int, ...]]:
    """Top, left, height, width and number of the pixels [N, S, S] that differ."""
    found = []
    for one in different:
        row, column = one.nonzero().T
        top, left = int(row.min()), int(column.min())
        found.append((top, left, int(row.max()) - top + 1, int(column.max()) - left + 1, len(row)))
    return found


def test_published_settings() -> None:
    paper = load_profile("paper").override(method_values("cutpaste", "paper"))
    section = paper.method.model_dump()
    assert (paper.model.backbone, paper.model.weights, paper.model.tap, paper.model.freeze) == (
        ("resnet18", "random", "deep", 0)
    )
    assert (paper.data.image_size, paper.budget.epochs, paper.budget.batch_size) == (256, 256, 96)
    assert (section["total_updates"], batch_norm(paper)) == (65_536, "train")
    assert [section[name] for name in ("variant", "seen", "sgd_lr", "momentum", "weight_decay", "l2_normalise")] == (
        ["3way", "none", 0.03, 0.9, 3e-5, False]
    )
    cpu = load_profile("cpu").override(method_values("cutpaste", "cpu"))
    assert (cpu.model.backbone, cpu.model.weights, cpu.model.tap) == ("efficientnet_lite0", "imagenet", "middle")
    assert (cpu.model.freeze, batch_norm(cpu), cpu.method.model_dump()["total_updates"]) == (6, "eval", 240)
    assert batch_parts(cpu) == (6, 0)
    # a space that draws the method has the very same
    assert load_profile("cpu").override({"method.name": "cutpaste"}) == cpu
    assert "3way" in cpu.entry.describe(cpu) and "6 blocks kept" in cpu.entry.describe(cpu)
    # of profile paper alone
    gpu = load_profile("gpu").override(method_values("cutpaste", "gpu"))
    assert (gpu.model.weights, gpu.method.model_dump()["total_updates"]) == ("imagenet", 240)


def test_what_is_searched(tiny: TrialConfig) -> None:
    space = load_space("cutpaste", tiny)
    assert set(space.by_name) == {
        *(f"method.{name}" for name in ("variant", "sgd_lr", "trunk_share", "shift", "jitter", "head_depth")),
        *("method.l2_normalise", "method.seen"),
    }
    assert space.is_active(space.by_name["method.seen"], {})
    unlabelled = load_space("cutpaste", tiny.override({"data.setting": "anomaly-free", "data.selection": "auto"}))
    assert not unlabelled.is_active(unlabelled.by_name["method.seen"], {})


@pytest.mark.parametrize("variant", VARIANTS)
def test_classes_hold_the_same_images_with_what_is_pasted(variant: str, config: TrialConfig, noise: TaskImages) -> None:
    """Rectangles of 2 to 15 % of the image, and turned boxes of at most 16 x 25 pixels at 256 px, a quarter at 64."""
    rules = VARIANTS[variant]
    own = config.override({**STILL, "method.variant": variant, "budget.batch_size": 12 * (1 + len(rules))})
    pretext, seen = Pretext(own, noise, CPU), []
    assert pretext.size == own.budget.batch_size
    for number in range(8):
        images, labels = pretext.batch(number)
        assert labels.tolist() == [label for label in range(1 + len(rules)) for _ in range(12)]
        normal, *pasted = images.split(12)
        # twelve are all that there are, each once
        expected = normalise(pixels_of(noise.array[1:13]))
        order = [int((one - expected).abs().amax(dim=(1, 2, 3)).argmin()) for one in normal]
        assert sorted(order) == list(range(12)) and torch.equal(normal, expected[order])
        for rule, changed in zip(rules, pasted, strict=True):
            seen += [(rule, *box) for box in boxes((changed != normal).any(dim=1))]
    # drawn anew for each image of each batch
    assert len(set(seen)) > 0.9 * len(seen)
    for rule, _, _, height, width, count in seen:
        scar = rule == "scar" or (rule == "union" and count < MAX_SCAR * 64**2)
        if scar:
            # 24 pixels, turned on the grid
            assert 1 <= count <= 28 and max(height, width) <= math.hypot(4, 6) + 1
        else:
            # few of the pixels happen to be as they were
            assert count == pytest.approx(height * width, rel=0.05)
            assert 0.018 < height * width / 64**2 < 0.16 and 0.27 < width / height < 3.7
    kinds = {rule == "scar" or count < MAX_SCAR * 64**2 for rule, *_, count in seen}
    assert kinds == {"normal": {False}, "scar": {True}}.get(variant, {False, True})


def test_images_move_and_change_their_colours_within_bounds(
    config: TrialConfig, noise: TaskImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = config.override({**STILL, "method.shift": 0.1, "budget.batch_size": 36})
    plain, _ = Pretext(own.override({"method.shift": 0.0}), noise, CPU).batch(0)
    real, _ = Pretext(own, noise, CPU).batch(0)
    # as if nothing were pasted
    still = Pretext(own, noise, CPU)
    monkeypatch.setattr(still, "pasted", lambda pixels, rule, number: Cut(pixels, torch.zeros(0)))
    moved, _ = still.batch(0)
    found = []
    for before, after in zip(plain[:12].repeat(3, 1, 1, 1), moved, strict=True):
        wide = torch.from_numpy(np.pad(before.numpy(), ((0, 0), (6, 6), (6, 6)), mode="symmetric"))
        places = [(y, x) for y in range(13) for x in range(13) if torch.equal(wide[:, y : y + 64, x : x + 64], after)]
        assert len(places) == 1
        found += places
    # 6.4 pixels, rounded; each copy of an image has a place of its own
    assert len(set(found)) > 20 and {0, 12} <= {place for pair in found for place in pair}
    # what is pasted then lies whole inside of its image: 2 % of it at least
    assert torch.equal(real[:12], moved[:12])
    patches = boxes((real[12:24] != moved[12:24]).any(dim=1))
    assert min(count for *_, count in patches) > 0.018 * 64**2
    coloured, _ = Pretext(own.override({"method.shift": 0.0, "method.jitter": 0.1}), noise, CPU).batch(0)
    raw = [one * torch.tensor([0.229, 0.224, 0.225])[:, None, None] for one in (plain, coloured)]
    # brightness, contrast, saturation: a tenth of at most 1 each; the hue a tenth of the circle
    away = (raw[1] - raw[0]).abs()
    assert (away.mean(dim=(1, 2, 3)) > 0.005).all() and away.mean() < 0.25


def test_a_summary_says_what_is_not_as_published() -> None:
    paper = load_profile("paper").override(method_values("cutpaste", "paper"))
    assert "other than published" not in ENTRY.describe(paper)
    line = ENTRY.describe(load_profile("cpu").override(method_values("cutpaste", "cpu")))
    fields = "data.image_size, model.backbone, model.weights, model.tap, model.freeze, method.total_updates, "
    assert line.endswith(
        f"; other than published (65,536 updates of ResNet-18 from nothing, 256 px): {fields}budget.batch_size"
    )
    assert ENTRY.describe(paper.override({"method.sgd_lr": 0.1})).endswith(": method.sgd_lr")


def test_labelled_anomalies_are_left_out_or_one_more_class(config: TrialConfig, noise: TaskImages) -> None:
    own = config.override({**STILL, "budget.batch_size": 21})
    others = noise.array.copy()
    others[noise.anomalies] = 0
    left_out = [
        Pretext(own, TaskImages(array, noise.normals, noise.anomalies), CPU).batch(1)[0]
        for array in (noise.array, others)
    ]
    assert torch.equal(*left_out) and len(left_out[0]) == 21
    # two thirds of the batch are normal slots: 14, of which four images fit three times
    pretext = Pretext(own.override({"method.seen": "class"}), noise, CPU)
    images, labels = pretext.batch(0)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 7 and pretext.size == 19
    expected = normalise(pixels_of(noise.array[noise.anomalies]))
    assert all(any(torch.equal(one, other) for other in expected) for one in images[12:])
    unlabelled = own.override({"method.seen": "class", "data.setting": "anomaly-free", "data.selection": "auto"})
    assert Pretext(unlabelled, noise, CPU).batch(0)[1].tolist() == [0] * 7 + [1] * 7 + [2] * 7


def test_shuffled_labels_are_those_of_the_batch(config: TrialConfig, noise: TaskImages) -> None:
    values = {"budget.batch_size": 36, "method.seen": "class"}
    plain, shuffled = (
        Pretext(config.override({**values, "data.shuffle_labels": value}), noise, CPU).batch(0)
        for value in (False, True)
    )
    assert torch.equal(plain[0], shuffled[0]) and not torch.equal(plain[1], shuffled[1])
    assert torch.equal(plain[1], shuffled[1].sort().values)
    shuffle = {"data.shuffle_labels": True}
    with pytest.raises(ConfigError, match=r"with method\.seen=none cutpaste learns .* or use method\.seen=class$"):
        config.override(shuffle)
    unlabelled = {"method.seen": "class", "data.setting": "anomaly-free", "data.selection": "auto"}
    with pytest.raises(ConfigError, match=r"with data\.setting=anomaly-free cutpaste .* or use data\.setting=general$"):
        config.override(shuffle | unlabelled)


def test_loss_and_updates_by_hand(config: TrialConfig) -> None:
    """Cross-entropy, momentum, L2 penalty and a cosine, written out; the trunk has its share of the rate."""
    own = config.override({"method.trunk_share": 0.25, "method.weight_decay": 0.01})
    training = method_of(Trainer(own)).training
    net = training.net.train()
    last, first = net.head[-1].weight, next(one for one in net.trunk.parameters() if one.requires_grad)
    velocity = {last: torch.zeros_like(last), first: torch.zeros_like(first)}
    logits: list[Tensor] = []
    net.head.register_forward_hook(lambda _, __, output: logits.append(output.detach()))
    # 2 epochs of 2 updates
    for number, cosine in enumerate((1.0, 0.5 + math.sqrt(0.125), 0.5)):
        before = {weight: weight.detach().clone() for weight in velocity}
        figures = training.update(number)
        odds = logits[-1].double().numpy()
        labels = training.pretext.batch(number)[1].numpy()
        told = odds[np.arange(6), labels] - np.log(np.exp(odds).sum(axis=1))
        assert labels.tolist() == [0, 0, 1, 1, 2, 2] and odds.shape == (6, 3)
        assert float(figures["loss"]) == pytest.approx(-told.mean(), rel=1e-5)
        assert float(figures["accuracy"]) == pytest.approx((odds.argmax(axis=1) == labels).mean())
        for weight, share in ((last, 1.0), (first, 0.25)):
            velocity[weight] = 0.9 * velocity[weight] + weight.grad + 0.01 * before[weight]
            after = before[weight] - 0.03 * share * cosine * velocity[weight]
            torch.testing.assert_close(weight.detach(), after, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("weights", "share"), [("random", 1.0), ("imagenet", 0.1)])
def test_a_pretrained_trunk_learns_at_a_tenth_and_keeps_its_statistics(
    weights: str, share: float, config: TrialConfig
) -> None:
    training = method_of(Trainer(config.override({"model.weights": weights}))).training
    assert [group["lr"] for group in training.optimiser.param_groups] == pytest.approx([0.03 * share, 0.03])
    net = training.net.train()
    means = [value for name, value in net.trunk.named_buffers() if name.endswith("running_mean")]
    before = [value.clone() for value in means]
    training.update(0)
    moved = [not torch.equal(value, old) for value, old in zip(means, before, strict=True)]
    # those of the blocks that are kept stay in any case
    assert any(moved) == (weights == "random") and not all(moved)


def test_head_layers(config: TrialConfig) -> None:
    for depth, widths in ((0, [128]), (1, [512, 128]), (2, [512, 512, 128])):
        head = method_of(Trainer(config.override({"method.head_depth": depth}))).net.head
        sizes = [one.out_features for one in head if isinstance(one, torch.nn.Linear)]
        assert sizes == [*widths, 3]


@pytest.mark.parametrize("unit_length", [False, True])
def test_scores_beside_scikit_learn(unit_length: bool, config: TrialConfig) -> None:
    """Pooled features of the trained blocks in a network that is built here, of the normal images as they are."""
    trainer = Trainer(config.override({"method.l2_normalise": unit_length}))
    figures = trainer.run_epoch().metrics
    net = build_backbone(FrozenChoice("efficientnet_lite0", ("middle",)), None).eval()
    state = trainer.method.model_state()
    net.load_state_dict({name: state[f"trunk.backbone.{name}"] for name in net.state_dict()})

    def rows(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            maps = [net(one) for one in normalise(pixels_of(images)).split(1)]
        found = np.concatenate([one.mean(dim=(2, 3)).double().numpy() for one in maps])
        return found / np.linalg.norm(found, axis=1, keepdims=True) if unit_length else found

    known = rows(images_of(trainer).take(images_of(trainer).normals))
    mean, scale = known.mean(axis=0), known.std(axis=0)
    fitted = LedoitWolf(assume_centered=True).fit((known - mean) / scale)
    images = trainer.selection.images[:10]
    away = (rows(images) - mean) / scale
    expected = np.sqrt(np.einsum("nc,cd,nd->n", away, np.linalg.inv(fitted.covariance_), away))
    assert known.shape[1] == 112 and expected.min() > 1
    np.testing.assert_allclose(trainer.method.score(images), expected, rtol=1e-4)
    assert figures["normals"] == len(known) and figures["shrinkage"] == pytest.approx(fitted.shrinkage_)


def test_before_training_the_score_is_that_of_the_weights_it_begins_with(config: TrialConfig) -> None:
    """And so it stays where all blocks are kept: what training adds is told by this row."""
    untrained = Trainer(config)
    images = untrained.selection.images
    before = untrained.method.score(images)
    (report, *_) = untrained.fit()
    assert np.abs(np.array(report.scores[untrained.task.key]) - before).max() > 0.1
    kept = Trainer(config.override({"model.freeze": 12}))
    kept.run_epoch()
    np.testing.assert_array_equal(kept.method.score(images), before)


def test_it_learns_and_sees_defects(config: TrialConfig) -> None:
    """Twelve images of four classes are told apart after a while; what is scored is what a checkpoint scores."""
    own = config.override({"method.seen": "class", "method.total_updates": 24, "budget.batch_size": 18})
    trainer = Trainer(own)
    reports = list(trainer.fit())
    assert reports[1].metrics["loss"] < reports[0].metrics["loss"]
    assert reports[1].metrics["accuracy"] > reports[0].metrics["accuracy"]
    assert reports[1].metrics["selection_auroc"] > 0.9
    loaded = trained_method(own, CPU, trainer.method.model_state())
    scores = loaded.score(trainer.selection.images)
    assert scores == pytest.approx(np.array(reports[1].scores[trainer.task.key]), rel=1e-3)


def test_the_same_image_has_the_same_score_whatever_it_is_scored_with(trainer: Trainer) -> None:
    images = trainer.selection.images[:7]
    scores = trainer.method.score(images)
    assert scores.dtype == np.float64 and len(np.unique(scores)) == 7
    np.testing.assert_array_equal(scores, [trainer.method.score(image[None])[0] for image in images])
    np.testing.assert_array_equal(scores, trainer.method.score(images[::-1])[::-1])
    assert trainer.method.score(images[:0]).shape == (0,)
    loaded = trained_method(trainer.config, CPU, trainer.method.model_state())
    np.testing.assert_array_equal(loaded.score(images), scores)
    np.testing.assert_allclose(loaded.module()(pixels_of(images)).numpy(), scores, rtol=1e-4)
    assert loaded.embed(images).shape == (7, 112) and loaded.embed(images[:0]).shape == (0, 112)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_a_stopped_training_goes_on_bit_by_bit(momentum: float, config: TrialConfig) -> None:
    own = config.override({"method.momentum": momentum, "method.total_updates": 5})
    whole = Trainer(own)
    first = whole.run_epoch()
    tensors, meta = whole.state()
    stored = {name: value.clone() for name, value in tensors.items()}, json.loads(json.dumps(meta))
    assert any(name.startswith("optim/") for name in stored[0]) == (momentum > 0)
    last = whole.run_epoch()
    later = Trainer(own)
    later.load_state(*stored)
    np.testing.assert_allclose(later.method.scorer()(later.selection.images), first.scores[whole.task.key], rtol=1e-5)
    again = later.run_epoch()
    assert again.scores == last.scores and again.metrics["loss"] == last.metrics["loss"]
    done = whole.state()[0]
    assert all(torch.equal(value, later.state()[0][name]) for name, value in done.items())


def test_kept_maps_change_nothing(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    # room for 16 images of 40 channels on 8 x 8 cells, the first pass alone
    monkeypatch.setattr(kept_features, "MAX_BYTES", 200_000)
    other, seen = Trainer(trainer.config), []
    blocks = method_of(other).net.trunk.backbone.blocks
    blocks[0].register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    list(other.fit())
    scored = len(images_of(other).normals) + len(other.selection.images)
    assert sum(seen) == 2 * scored - 16 + 2 * 2 * 6
    monkeypatch.undo()
    own = Trainer(trainer.config)
    # a watched block rounds otherwise
    method_of(own).net.trunk.backbone.blocks[0].register_forward_hook(lambda *_: None)
    list(own.fit())
    kept = own.method.model_state()
    assert all(torch.equal(value, kept[name]) for name, value in other.method.model_state().items())


def test_frozen_blocks_see_each_image_once(config: TrialConfig) -> None:
    trainer, passes = Trainer(config), []
    blocks = method_of(trainer).net.trunk.backbone.blocks
    for block in (blocks[0], blocks[-1]):
        block.register_forward_hook(lambda module, args, _: passes.append((module is blocks[0], len(args[0]))))
    list(trainer.fit())
    scored = len(images_of(trainer).normals) + len(trainer.selection.images)
    training = 2 * 2 * 6
    assert sum(count for first, count in passes if first) == scored + training
    assert sum(count for first, count in passes if not first) == 2 * scored + training


def test_it_stops_when_it_is_told(config: TrialConfig, trainer: Trainer) -> None:
    # two updates, and what is fitted a few images at a time
    for count in (0, 1, 3):
        method, asked = fresh_method(config, CPU), iter(range(100))
        method.prepare(images_of(trainer))
        with pytest.raises(StoppedError, match="stopped in epoch 1"):
            method.run_epoch(0, lambda asked=asked, count=count: next(asked) >= count)  # type: ignore[misc]
        assert next(asked) == count + 1


def test_what_it_cannot_do_is_one_line(config: TrialConfig, trainer: Trainer, noise: TaskImages) -> None:
    method = fresh_method(config, CPU)
    with pytest.raises(ValueError, match="seen no images yet"):
        method.score(noise.array)
    with pytest.raises(DataError, match="needs 10 normal training images at least, and 9 are there"):
        method.prepare(TaskImages(noise.array, noise.normals[:9], noise.anomalies))
    few = {"budget.batch_size": 3, "data.balance": 0.67}
    with pytest.raises(ConfigError, match=r"batch_size=3 leaves 2 images beside 1 .*variant=3way needs 3; use a larg"):
        config.override({**few, "method.seen": "class"})
    assert config.override({**few, "method.seen": "class", "method.variant": "scar"})
    with pytest.raises(ConfigError, match=r"method\.variant='2way': input should be '3way', 'union', 'normal' or"):
        config.override({"method.variant": "2way"})
    with pytest.raises(ConfigError, match=r"optim\.lr=0\.001: method cutpaste has no use for it"):
        config.override({"optim.lr": 0.001})


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "no finite numbers"), (0.0, "the same features")])
def test_a_trunk_that_has_gone_astray_is_no_fault_of_the_images(
    value: float, message: str, config: TrialConfig
) -> None:
    method = method_of(Trainer(config))
    with torch.no_grad():
        for weight in method.net.trunk.parameters():
            weight.fill_(value)
    with pytest.raises(NonFiniteError, match=message) as caught:
        method.score(np.zeros((1, 64, 64, 3), np.uint8))
    assert "method.sgd_lr" in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_model_of_it_is_refused(config: TrialConfig, trainer: Trainer) -> None:
    stored = trainer.method.model_state()
    some = "trunk.backbone.blocks.7._expand_conv.weight"
    for wrong in (
        {},
        {name: value for name, value in stored.items() if name != some},
        stored | {some: stored[some].double()},
        stored | {"density.axes": torch.zeros(())},
        {name: value for name, value in stored.items() if name != "density.gains"},
        stored | {"more": torch.zeros(1)},
    ):
        with pytest.raises(CheckpointError, match="none of method cutpaste") as caught:
            trained_method(config, CPU, wrong)
        assert "\n" not in str(caught.value)
    tensors, values = trainer.method.state()
    for strange in (
        tensors | {"optim/0": torch.zeros(1)},
        tensors | {"optim/9999": torch.zeros(1)},
        {name: value for name, value in tensors.items() if name != "optim/1"},
        {name: value for name, value in tensors.items() if name != "head/0.weight"},
    ):
        with pytest.raises(CheckpointError):
            Trainer(config).method.load_state(strange, values)


def test_a_weight_that_no_gradient_reaches_has_no_momentum_to_lose(config: TrialConfig) -> None:
    """As the last ones of HRNet by timm."""
    own, other = Trainer(config), Trainer(config)
    for one in (own, other):
        idle = torch.nn.Parameter(torch.zeros(3))
        method_of(one).training.optimiser.param_groups[0]["params"].append(idle)
    own.run_epoch()
    stored = own.state()
    other.load_state(*stored)
    assert other.method.state()[1] == own.method.state()[1]
    assert own.run_epoch().scores == other.run_epoch().scores
    tensors, values = own.method.state()
    lost = {name: value for name, value in tensors.items() if name != "optim/0"}
    with pytest.raises(CheckpointError, match="a part of its state is missing"):
        other.method.load_state(lost, values)
    # an earlier version does not say how many there are
    other.method.load_state(tensors, {name: value for name, value in values.items() if name != "stepped"})


def test_pictures(trainer: Trainer) -> None:
    images = trainer.selection.images[:2]
    gradients = heat_maps(trainer.method, images, "gradient")
    assert gradients is not None and gradients.shape == images.shape[:3] and np.ptp(gradients, axis=(1, 2)).min() > 0
    assert heat_maps(trainer.method, images, "score") is None
    examples = pseudo_examples(trainer, 4)
    shares = [float(one.mask.mean()) for one in examples]
    assert [share < MAX_SCAR for share in shares] == [False, True, False, True]
    for one in examples:
        assert one.receiver is one.donor and np.array_equal(one.result[~one.mask], one.receiver[~one.mask])
        assert not np.array_equal(one.result, one.receiver)


def test_the_dry_run_scores_what_it_has_timed(config: TrialConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    again = Trainer(config)
    # an update of a second, a first fit of three, each other one of one; two epochs of two updates
    times = iter((0.0, 1.0, 4.0, 5.0))
    monkeypatch.setattr("sctune.methods.cutpaste.method.now", lambda _: next(times))
    assert again.time_step() == (1 + (3 + 1) / 4, 2)
    assert np.isfinite(again.method.scorer()(again.selection.images[:3])).all()


@pytest.mark.slow
def test_onnx_gives_the_scores(trainer: Trainer, tmp_path: Path) -> None:
    images = np.concatenate([trainer.selection.images[:8], generated_images(trainer.config.data.image_size)])
    pixels = pixels_of(images)
    program = torch.onnx.export(
        trainer.method.module(),
        (pixels,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("images", min=1)},),
        verbose=False,
    )
    program.save(tmp_path / "cutpaste.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "cutpaste.onnx")
    for count in (1, len(images)):
        (found,) = session.run(None, {session.get_inputs()[0].name: pixels[:count].numpy()})
        parity = score_parity(trainer.method.score(images[:count]), found.astype(np.float64), None)
        assert parity.images == count and parity.holds, parity.line()
