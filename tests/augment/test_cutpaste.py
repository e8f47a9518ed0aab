"""CutPaste: patches, scars and their union. What every maker promises is tested in test_cutmix.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms.v2 import functional as reference

from sctune.augment.cut import move
from sctune.augment.cutmix import cutmix
from sctune.augment.cutpaste import cutpaste, scar_places
from sctune.augment.jitter import OPERATIONS, draw_jitter
from sctune.config import AugmentConfig
from sctune.data.batches import stream

SIDES = st.integers(16, 120)
SEEDS = st.integers(0, 2**32)


def make(rule, receivers, seed=1):
    config = AugmentConfig(kind="cutpaste", cutpaste=rule)
    return cutpaste(receivers, torch.full_like(receivers, torch.nan), config, stream(seed, "maker"))


def numbered(count, height, width):
    """Images whose red and green name the row and the column of each pixel, and blue the image."""
    images = torch.empty(count, 3, height, width, dtype=torch.float64)
    images[:, 0] = torch.arange(height)[:, None]
    images[:, 1] = torch.arange(width)
    images[:, 2] = torch.arange(count)[:, None, None]
    return images


def moved_pixels(row, images, made):
    """Where the pasted pixels of an image lie and where they come from: [2, P] each, rows and columns."""
    target = made.pasted[row, 0].nonzero().T.double()
    source = made.images[row][:, made.pasted[row, 0]]
    assert (source[2] == images[row, 2, 0, 0]).all()
    return target, source[:2]


def listed_pixels(row, places, width):
    """The same from the lists of places, without images."""
    numbers = (part[row][places.used[row]] for part in (places.target, places.source))
    return [torch.stack([part // width, part % width]).double() for part in numbers]


def slant(target, source):
    """Degrees by which the piece was turned, from the best linear map of the source onto the target."""
    centred = [points - points.mean(dim=1, keepdim=True) for points in (target, source)]
    matrix = torch.linalg.lstsq(centred[1].T, centred[0].T).solution.T
    return math.degrees(math.atan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1]))


def test_normal_is_the_rule_of_cutmix():
    receivers = torch.rand(6, 3, 40, 30, generator=stream(0))
    one, two = make("normal", receivers), cutmix(receivers, receivers, AugmentConfig(kind="cutmix"), stream(1, "maker"))
    assert torch.equal(one.images, two.images) and torch.equal(one.pasted, two.pasted)


@settings(deadline=None, max_examples=60)
@given(height=SIDES, width=SIDES, seed=SEEDS)
def test_a_scar_is_a_turned_piece_of_the_same_image(height, width, seed):
    images = numbered(5, height, width)
    made = move(images, scar_places(5, height, width, stream(seed)), None)
    scale = min(height, width) / 256
    for row in range(5):
        target, source = moved_pixels(row, images, made)
        sides = source.amax(dim=1) - source.amin(dim=1) + 1
        assert sides[0] <= max(1, round(25 * scale)) and sides[1] <= max(1, round(16 * scale))
        # turned, neither stretched nor mirrored: two pixels lie as far apart as they did, but for rounding
        far = torch.cdist(target.T, target.T), torch.cdist(source.T, source.T)
        assert (far[0] - far[1]).abs().max() < 1.5


def test_the_slow_way_with_torchvision():
    """Scars by a loop: crop, jitter, and turn pixel by pixel with complex numbers."""
    size, count = 128, 10
    receivers, generator = torch.rand(count, 3, size, size, generator=stream(0)), stream(1, "maker")
    made = make("scar", receivers)
    images = numbered(count, size, size)
    places = scar_places(count, size, size, generator)
    plain = move(images, places, None)
    jitter = draw_jitter(count, 0.1, generator)
    for row in range(count):
        target, source = moved_pixels(row, images, plain)
        (top, left), (bottom, right) = source.amin(dim=1).int().tolist(), source.amax(dim=1).int().tolist()
        crop = receivers[row, :, top : bottom + 1, left : right + 1]
        # the mean grey is that of the pixels that arrive
        flat = receivers[row][:, source[0].long(), source[1].long()][:, None]
        for number in jitter.order[row].tolist():
            flat = getattr(reference, f"adjust_{OPERATIONS[number]}")(flat, jitter.amounts[row, number].item())
        got = made.images[row][:, target[0].long(), target[1].long()]
        torch.testing.assert_close(got, flat[:, 0], atol=1e-5, rtol=0)
        across, down = crop.shape[2], crop.shape[1]
        centre = complex(*(target.mean(dim=1).flip(0).tolist()))
        turn = complex(math.cos(a := math.radians(slant(target, source))), math.sin(a))
        for (y, x), (v, u) in zip(target.T.tolist(), source.T.tolist(), strict=True):
            back = (complex(x, y) - centre) * turn + complex(left + across / 2 - 0.5, top + down / 2 - 0.5)
            assert abs(back - complex(u, v)) < 1.6


def test_areas_sides_and_angles_of_scars():
    size, count = 512, 400
    places = scar_places(count, size, size, stream(2))
    pixels = places.used.sum(dim=1)
    # 2..16 by 10..25 pixels at 256, doubled; a turned box holds as many pixel centres as its area, about
    assert pixels.min() > 0.7 * 4 * 20 and pixels.max() < 1.05 * 32 * 50
    across, down, angles = [], [], []
    for row in range(count):
        target, source = listed_pixels(row, places, size)
        sides = (source.amax(dim=1) - source.amin(dim=1) + 1).tolist()
        down.append(sides[0])
        across.append(sides[1])
        angles.append(slant(target, source))
    assert min(across) >= 4 and max(across) <= 32 and min(down) >= 19 and max(down) <= 50
    assert -47 < min(angles) < -42 and 42 < max(angles) < 47
    assert stats.kstest(angles, stats.uniform(-45, 90).cdf).pvalue > 1e-3
    assert stats.kstest(across, stats.uniform(4, 28).cdf).statistic < 0.1
    assert stats.kstest(down, stats.uniform(20, 30).cdf).statistic < 0.1


def test_scars_scale_with_the_smaller_side():
    shares = {
        side: scar_places(500, side, 3 * side, stream(3)).used.sum(dim=1).double().mean() / side**2
        for side in (128, 512)
    }
    # 9 x 17.5 pixels of 256 x 256 in the mean
    assert [shares[128].item(), shares[512].item()] == pytest.approx([9 * 17.5 / 256**2] * 2, rel=0.06)


def test_places_of_scars_are_uniform():
    height, width = 200, 300
    places = scar_places(6000, height, width, stream(4))
    # the first entry is the centre of the turned box; no box reaches farther than this
    row, column = places.target[:, 0] // width, places.target[:, 0] % width
    margin = 12
    free = (row >= margin) & (row < height - margin) & (column >= margin) & (column < width - margin)
    for place, size in ((row, height), (column, width)):
        values = (place[free] - margin + 0.5) / (size - 2 * margin)
        assert stats.kstest(values.numpy(), "uniform").pvalue > 1e-3
    row, column = places.source[:, 0] // width, places.source[:, 0] % width
    counts = torch.histogramdd(
        torch.stack([row / height, column / width], dim=1).double(), [4, 4], range=[0.1, 0.9, 0.1, 0.9]
    ).hist
    assert stats.chisquare(counts.flatten().numpy()).pvalue > 1e-3


def test_scars_reach_the_border_and_are_cut_everywhere():
    places = scar_places(200_000, 40, 50, stream(5))
    assert len(places.source[places.used].unique()) == 40 * 50
    hit = torch.zeros(40 * 50).index_add(0, places.target[places.used], torch.ones(int(places.used.sum())))
    hit = hit.view(40, 50)
    assert (hit[1:-1, 1:-1] > 0).all()
    assert hit[0].any() and hit[-1].any() and hit[:, 0].any() and hit[:, -1].any()
    middle = hit[8:-8, 8:-8]
    assert middle.max() < 1.5 * middle.min()


def test_union_is_each_of_the_two_with_even_chance():
    made = make("union", torch.rand(3000, 3, 32, 32, generator=stream(6)))
    share = made.pasted.float().mean(dim=(1, 2, 3))
    scars = share < 0.012
    assert scars.double().mean().item() == pytest.approx(0.5, abs=0.03)
    # nothing lies between the largest scar and the smallest patch
    assert share[~scars].min() > 0.012 and share[~scars].max() > 0.14


@pytest.mark.parametrize("rule", ["normal", "scar", "union"])
def test_grey_images_stay_grey(rule):
    receivers = torch.rand(20, 1, 48, 48, generator=stream(7)).expand(-1, 3, -1, -1)
    made = make(rule, receivers)
    assert (made.images.amax(dim=1) - made.images.amin(dim=1)).max() < 1e-6
