"""What SaliencyCut pastes: Algorithm 1, its switches, and constant maps."""

from itertools import pairwise

import pytest
import torch

from sctune.augment.saliencycut import paste, rectangles, saliencycut
from sctune.config import AugmentConfig
from sctune.data.batches import stream

SIZE = 32


def batch(count=3):
    torch.manual_seed(0)
    donors, receivers = torch.rand(count, 3, SIZE, SIZE), torch.rand(count, 3, SIZE, SIZE) + 2
    gradient = torch.rand(count, 3, SIZE, SIZE) * torch.linspace(0.01, 1, SIZE)
    return donors, receivers, gradient, torch.ones(count, 1, SIZE, SIZE, dtype=torch.bool)


def make(config, arrays=None):
    donors, receivers, gradient, valid = arrays or batch()
    return saliencycut(donors, receivers, gradient, valid, config, stream(1, "rect"))


def test_algorithm_1_line_5():
    donor, receiver = torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    saliency = torch.tensor([[0.1, 0.4], [0.5, 0.9]]).view(1, 1, 2, 2)
    mixed = paste(donor, receiver, saliency, 0.4)
    assert mixed[0, 0].tolist() == [[1, 1], [0, 0]]


def test_pasted_pixels_are_the_donors_and_the_others_the_receivers():
    donors, receivers, _, _ = batch()
    made = make(AugmentConfig(grid_size=8))
    inside = made.pasted.expand_as(donors)
    assert torch.equal(made.images[inside], donors[inside])
    assert torch.equal(made.images[~inside], receivers[~inside])
    assert torch.equal(made.pasted, made.saliency <= 0.4)


def test_pasted_share_rises_with_the_threshold():
    shares = [make(AugmentConfig(grid_size=8, threshold=t / 10)).pasted.float().mean().item() for t in range(2, 9)]
    assert all(low < high for low, high in pairwise(shares))


def test_salient_region_is_the_complement():
    one = make(AugmentConfig(grid_size=8))
    other = make(AugmentConfig(grid_size=8, region="salient"))
    assert torch.equal(one.pasted, ~other.pasted)


def test_only_valid_pixels_are_pasted():
    arrays = batch()
    arrays[3][:, :, :10] = False
    assert not make(AugmentConfig(grid_size=8), arrays).pasted[:, :, :10].any()
    assert make(AugmentConfig(grid_size=8, paste_valid_only=False), arrays).pasted[:, :, :10].any()


@pytest.mark.parametrize(
    ("rule", "share", "dropped"), [("rect", (0.01, 0.2), False), ("drop", (0, 0), True), ("official", (0, 0), False)]
)
def test_constant_saliency(rule, share, dropped):
    donors, receivers, gradient, valid = batch()
    gradient[1] = 0
    made = make(AugmentConfig(grid_size=8, on_flat=rule), (donors, receivers, gradient, valid))
    assert made.flat.tolist() == [False, True, False]
    assert made.dropped.tolist() == [False, dropped, False]
    assert share[0] <= made.pasted[1].float().mean().item() <= share[1]


def test_rectangles_have_the_stated_area_and_aspect():
    masks = rectangles(500, 100, stream(3, "r"))
    share = masks.float().mean(dim=(1, 2, 3))
    height = masks.any(dim=3).sum(dim=(1, 2)).float()
    width = masks.any(dim=2).sum(dim=(1, 2)).float()
    assert torch.equal(height * width, masks.sum(dim=(1, 2, 3)).float())
    assert share.min() > 0.015 and share.max() < 0.16
    assert (width / height).min() < 0.4 and (width / height).max() > 2.5
