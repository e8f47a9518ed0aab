"""Every kind of heads against hand calculations on tiny maps: targets, loss subsets, references, the score."""

import numpy as np
import pytest
import torch
from torch import nn

from sctune.backbones.trunk import Backbone
from sctune.config import LossConfig, TrialConfig
from sctune.methods.deviation.detector import Detector
from sctune.methods.deviation.heads import LatentResidualHead, PlainHead
from sctune.methods.deviation.roles import HEADS, Role, combine, head_losses, head_roles
from sctune.methods.pixels import normalise, to_pixels

LABELS = torch.tensor([0, 0, 1, 2])


class Shrink(nn.Module):
    """A backbone whose maps can be worked out by hand: the mean of each 16 px cell, in two channels."""

    def forward(self, images):
        cells = nn.functional.avg_pool2d(images, 16)
        return torch.stack([cells[:, 0], cells.sum(dim=1)], dim=1)


def config(heads, **values):
    base = {
        "model.heads": heads,
        "model.n_scales": 1,
        "data.image_size": 64,
        "model.backbone": "efficientnet_lite0",
        "model.tap": "middle",
        "model.patch_place": "grid2d",
        "augment.grid_size": 8,
        "model.reference_count": 2,
    }
    return TrialConfig().override(base | {name.replace("__", "."): value for name, value in values.items()})


def detector(heads, **values):
    torch.manual_seed(0)
    return Detector(config(heads, **values), Backbone([Shrink()], 2)).eval()


def test_plain_head_by_hand():
    head = PlainHead(2, top_k=0.5)
    with torch.no_grad():
        head.scoring.weight.copy_(torch.tensor([1.0, -1.0])[None, :, None, None])
        head.scoring.bias.fill_(0.5)
    features = torch.tensor([[[1.0, 2.0], [0.0, 4.0]], [[1.0, 5.0], [0.0, 0.0]]])[None]
    # |1 - 1 + .5|, |2 - 5 + .5|, |0 - 0 + .5|, |4 - 0 + .5|: the upper half is 4.5 and 2.5
    assert head(features).tolist() == [3.5]


def test_latent_head_by_hand():
    head = LatentResidualHead(1, top_k=0.25).eval()
    with torch.no_grad():
        head.conv[0].weight.zero_()
        head.conv[0].weight[0, 0, 1, 1] = 2.0  # the centre alone: no neighbours
        head.conv[0].bias.fill_(1.0)
        head.scoring.weight.fill_(-3.0)
        head.scoring.bias.fill_(0.25)
    reference = torch.tensor([[[[5.0, 1.0], [1.0, 1.0]]]])
    features = torch.tensor([[[[1.0, 1.0], [1.0, 9.0]]]])
    # residual reference - image: 4, 0, 0, -8; 2r + 1 and ReLU: 9, 1, 1, 0 (batch norm divides by sqrt(1 + 1e-5));
    # the greatest of |-3 x + .25|
    norm = 1 / np.sqrt(1 + 1e-5)
    assert head(features, reference).item() == pytest.approx(abs(-3 * 9 * norm + 0.25), abs=1e-5)


def test_targets_of_every_head():
    expected = {
        "two_head_patch": {"normal": [1, 1, 0, 0], "anomaly": [0, 0, 1, 1]},
        "two_head_latent": {"normal": [1, 1, 0, 0], "anomaly": [0, 0, 1, 1]},
        "four_head": {"normal": [1, 1, 0, 0], "seen": [0, 0, 1, 0], "pseudo": [0, 0, 0, 1], "latent": [0, 0, 1, 1]},
        "single_head": {"anomaly": [0, 0, 1, 1]},
    }
    for heads, targets in expected.items():
        roles = HEADS[heads]
        assert {name: role.targets(LABELS).tolist() for name, role in roles.items()} == targets


def test_losses_look_at_each_heads_own_slots():
    scores = {
        "normal": torch.tensor([6.0, 4.0, 1.0, 0.0]),
        "seen": torch.tensor([1.0, 0.0, 2.0, 99.0]),
        "pseudo": torch.tensor([0.5, 0.0, 99.0, 4.5]),
        "latent": torch.tensor([1.0, 1.0, 6.0, 3.0]),
    }
    losses = head_losses(scores, LABELS, HEADS["four_head"], LossConfig())
    expected = {
        "normal": (0 + 1 + 1 + 0) / 4,  # margin 5 for normals, |score| for the others
        "seen": (1 + 0 + 3) / 3,  # without the pseudo slot
        "pseudo": (0.5 + 0 + 0.5) / 3,  # without the seen slot
        "latent": (1 + 1 + 0 + 2) / 4,
    }
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected)


@pytest.mark.parametrize("labels", [[0, 0, 2], [0, 0, 0], [2, 2, 2]])
def test_a_head_without_its_anomalies_in_the_batch_learns_nothing(labels):
    labels = torch.tensor(labels)
    scores = {name: torch.ones(3, requires_grad=True) for name in HEADS["four_head"]}
    losses = head_losses(scores, labels, HEADS["four_head"], LossConfig())
    assert losses["seen"].item() == 0.0
    assert all(torch.isfinite(value) for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert not scores["seen"].grad.any()
    assert (losses["pseudo"].item() == 0.0) == (2 not in labels)


def test_the_score_sums_the_heads_and_subtracts_the_normal_one():
    scores = {"normal": torch.tensor([1.0]), "seen": torch.tensor([2.0]), "pseudo": torch.tensor([4.0])}
    assert combine(scores | {"latent": torch.tensor([8.0])}, HEADS["four_head"]).item() == 13.0
    assert combine({"anomaly": torch.tensor([3.0])}, HEADS["single_head"]).item() == 3.0
    assert combine({"normal": torch.tensor([1.0]), "anomaly": torch.tensor([3.0])}, HEADS["two_head_patch"]).item() == 2


def test_heads_that_cannot_learn_are_left_out():
    assert list(head_roles(config("four_head"))) == ["normal", "seen", "pseudo", "latent"]
    assert list(head_roles(config("four_head", data__setting="anomaly-free"))) == ["normal", "pseudo", "latent"]
    assert list(head_roles(config("four_head", augment__kind="none"))) == ["normal", "seen", "latent"]
    assert list(head_roles(config("single_head", augment__kind="none"))) == ["anomaly"]
    assert Role((0, 1), (1,)).sign == 1 and HEADS["four_head"]["normal"].sign == -1


@pytest.mark.parametrize("heads", list(HEADS))
def test_modules_of_every_kind(heads):
    names = {name for name, _ in detector(heads).named_children()}
    assert names == {"backbone", *HEADS[heads]}


@pytest.mark.parametrize("heads", ["two_head_latent", "four_head"])
def test_scores_are_measured_from_the_stored_references(heads):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 64, 64, 3), np.uint8)
    references = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    model = detector(heads)
    with pytest.raises(ValueError, match="set_references"):
        model.score_images(images)
    model.set_references(references)
    features = Shrink()(normalise(to_pixels(images, torch.device("cpu"))))
    mean = Shrink()(normalise(to_pixels(references, torch.device("cpu")))).mean(dim=0, keepdim=True)
    name = "latent" if heads == "four_head" else "anomaly"
    with torch.inference_mode():
        expected = model.head(name)(features, mean) - model.normal(features)
        if heads == "four_head":
            expected += model.seen(features) + model.pseudo(features)
    scores = model.score_images(images)
    assert scores == pytest.approx(expected.double().numpy(), abs=1e-6)
    # neither order nor batch size nor the order of the references changes a score
    assert model.score_images(images[::-1], batch_size=1)[::-1] == pytest.approx(scores, abs=1e-6)
    model.set_references(references[::-1])
    assert model.score_images(images) == pytest.approx(scores, abs=1e-5)
    model.set_references(images[:2])
    assert np.abs(model.score_images(images) - scores).max() > 1e-3


def test_references_join_the_batch_in_training():
    model = detector("two_head_latent")
    seen = []
    model.backbone.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    images = torch.rand(4, 3, 64, 64)
    joined = model(images, None, torch.rand(2, 3, 64, 64))
    assert seen == [6] and joined["anomaly"].shape == (4,)


def test_references_are_part_of_the_state():
    model, other = detector("four_head"), detector("four_head", seed=1)
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), np.uint8)
    model.set_references(images)
    other.load_state_dict(model.state_dict())
    assert other.references.dtype == torch.uint8 and np.array_equal(other.references.numpy(), images)
    assert np.array_equal(other.score_images(images), model.score_images(images))
    assert "references" not in detector("two_head_patch").state_dict()


def test_single_head_is_devnet_by_hand():
    model = detector("single_head", model__top_k=0.25)
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[0, :16, :16] = 255
    with torch.no_grad():
        model.anomaly.scoring.weight.copy_(torch.tensor([1.0, 0.0])[None, :, None, None])
        model.anomaly.scoring.bias.zero_()
    # 16 cells, 4 of them count: the white cell in the first channel, and three black ones
    white, black = (1 - 0.485) / 0.229, 0.485 / 0.229
    assert model.score_images(image)[0] == pytest.approx((white + 3 * black) / 4, abs=1e-5)
    assert model.draw_offsets(3) is None


def test_features_for_pictures_are_the_mean_of_the_map():
    images = np.random.default_rng(2).integers(0, 256, (5, 64, 64, 3), np.uint8)
    model = detector("two_head_patch")
    maps = Shrink()(normalise(to_pixels(images, torch.device("cpu"))))
    assert model.embed(images, batch_size=2) == pytest.approx(maps.mean(dim=(2, 3)).numpy(), abs=1e-5)
