"""CutMix as DRA has it and CutMix of a pair: areas, places, sources, and what every maker promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng
from scipy import stats
from torchvision.transforms.v2 import functional as reference

from sctune.augment.cut import Places, move
from sctune.augment.cutmix import cutmix, cutmix_pair, pair_boxes, patch_places
from sctune.augment.jitter import OPERATIONS, Jitter, draw_jitter
from sctune.augment.makers import PIXEL_MAKERS
from sctune.config import AugmentConfig
from sctune.data.batches import stream

CONFIGS = {
    "cutmix": AugmentConfig(kind="cutmix"),
    "cutmix_pair": AugmentConfig(kind="cutmix_pair"),
    **{f"cutpaste {rule}": AugmentConfig(kind="cutpaste", cutpaste=rule) for rule in ("normal", "scar", "union")},
}
SIDES = st.integers(16, 90)
SEEDS = st.integers(0, 2**32)


def make(name, receivers, donors=None, seed=1):
    config = CONFIGS[name]
    return PIXEL_MAKERS[config.kind](
        receivers, receivers.flip(0) if donors is None else donors, config, stream(seed, "maker")
    )


def photos(count=4, height=40, width=52, seed=0):
    return torch.rand(count, 3, height, width, generator=stream(seed, "photos"))


def numbered(count, height, width):
    """Images whose red and green name the row and the column of each pixel, and blue the image."""
    images = torch.empty(count, 3, height, width, dtype=torch.float64)
    images[:, 0] = torch.arange(height)[:, None]
    images[:, 1] = torch.arange(width)
    images[:, 2] = torch.arange(count)[:, None, None]
    return images


def edges(pasted):
    """top, bottom, left, right [M] (ends excluded) of the smallest boxes around masks [M, 1, H, W]."""
    found = []
    for axis in (3, 2):
        line = pasted.any(dim=axis)[:, 0].int()
        found += [line.argmax(dim=1), line.shape[1] - line.flip(1).argmax(dim=1)]
    return torch.stack(found)


# -- every maker ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@settings(deadline=None, max_examples=25)
@given(count=st.integers(0, 5), height=SIDES, width=SIDES, seed=SEEDS)
def test_only_pasted_pixels_change_and_values_stay_in_range(name, count, height, width, seed):
    receivers, donors = photos(count, height, width, seed), photos(count, height, width, seed + 1)
    before = receivers.clone(), donors.clone()
    made = make(name, receivers, donors, seed)
    assert torch.equal(receivers, before[0]) and torch.equal(donors, before[1])
    assert made.images.shape == receivers.shape and made.images.dtype == receivers.dtype
    assert made.pasted.shape == (count, 1, height, width) and made.pasted.dtype == torch.bool
    outside = ~made.pasted.expand_as(receivers)
    assert torch.equal(made.images[outside], receivers[outside])
    assert made.pasted.flatten(1).any(dim=1).all()
    assert ((made.images >= 0) & (made.images <= 1)).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_generator_decides(name):
    receivers = photos()
    one, same, other = make(name, receivers), make(name, receivers), make(name, receivers, seed=2)
    assert torch.equal(one.images, same.images) and torch.equal(one.pasted, same.pasted)
    assert not torch.equal(one.pasted, other.pasted)
    assert not torch.equal(one.pasted[0], one.pasted[1])


@pytest.mark.parametrize("name", CONFIGS)
def test_memory_layout_does_not_matter_and_is_kept(name):
    receivers = photos()
    one = make(name, receivers)
    last = make(name, receivers.contiguous(memory_format=torch.channels_last))
    assert torch.equal(one.images, last.images) and torch.equal(one.pasted, last.pasted)
    assert one.images.is_contiguous() and last.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_other_images_of_a_batch_do_not_matter(name):
    receivers, donors = photos(6), photos(6, seed=7)
    one = make(name, receivers, donors)
    others, other_donors = photos(6, seed=8), photos(6, seed=9)
    others[2], other_donors[2] = receivers[2], donors[2]
    two = make(name, others, other_donors)
    assert torch.equal(one.images[2], two.images[2]) and torch.equal(one.pasted, two.pasted)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_device_is_never_waited_for(name):
    """The meta device refuses operands on the CPU, and whatever needs a tensor's value on the host."""
    receivers = torch.empty(5, 3, 30, 40, device="meta")
    made = make(name, receivers, receivers)
    assert made.images.device.type == "meta" and made.images.shape == receivers.shape
    assert made.pasted.device.type == "meta" and made.pasted.shape == (5, 1, 30, 40)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 1, 20, 20), "3, H, W"), ((3, 20, 20), "3, H, W"), ((2, 3, 20, 7), "20x7 pixels are too small")],
)
def test_images_that_cannot_be_cut(name, shape, message):
    with pytest.raises(ValueError, match=message):
        make(name, torch.rand(shape))


@pytest.mark.parametrize("name", CONFIGS)
def test_integers_and_donors_of_another_size_are_refused(name):
    with pytest.raises(ValueError, match=r"uint8.*floats"):
        make(name, torch.zeros(2, 3, 20, 20, dtype=torch.uint8))
    with pytest.raises(ValueError, match="same shape"):
        make(name, photos(2, 20, 20), photos(2, 20, 21))


@pytest.mark.parametrize("name", CONFIGS)
def test_smallest_images(name):
    made = make(name, photos(300, 8, 8))
    assert made.pasted.flatten(1).any(dim=1).all() and not made.pasted.flatten(1).all(dim=1).any()


# -- cutmix -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(height=SIDES, width=SIDES, seed=SEEDS)
def test_a_patch_is_a_moved_rectangle_of_the_same_image(height, width, seed):
    images = numbered(6, height, width)
    made = move(images, patch_places(6, height, width, stream(seed)), None)
    top, bottom, left, right = edges(made.pasted)
    down, across = bottom - top, right - left
    assert torch.equal(made.pasted.sum(dim=(1, 2, 3)), down * across)
    # the sides are rounded from real numbers within the bounds
    assert ((down - 0.5) * (across - 0.5) <= 0.15 * height * width).all()
    assert ((down + 0.5) * (across + 0.5) >= 0.02 * height * width).all()
    if 0.5 <= height / width <= 2:
        assert ((across - 0.5) / (down + 0.5) <= 1 / 0.3).all() and ((across + 0.5) / (down - 0.5) >= 0.3).all()
    for row in range(6):
        shift = (made.images - images)[row][:, made.pasted[row, 0]]
        assert (shift == shift[:, :1]).all() and shift[2, 0] == 0


def test_cutmix_is_the_slow_way_with_torchvision():
    receivers, generator = photos(12, 60, 45), stream(1, "maker")
    made = cutmix(receivers, torch.full_like(receivers, torch.nan), CONFIGS["cutmix"], stream(1, "maker"))
    places = patch_places(12, 60, 45, generator)
    jitter = draw_jitter(12, 0.1, generator)
    for row in range(12):
        source, target = (numbers[row][places.used[row]] for numbers in (places.source, places.target))
        # first and last pixel of each list are the corners
        (top, left), (bottom, right) = (divmod(source[end].item(), 45) for end in (0, -1))
        crop = receivers[row, :, top : bottom + 1, left : right + 1]
        for number in jitter.order[row].tolist():
            crop = getattr(reference, f"adjust_{OPERATIONS[number]}")(crop, jitter.amounts[row, number].item())
        down, across = divmod(target[0].item(), 45)
        expected = receivers[row].clone()
        expected[:, down : down + crop.shape[1], across : across + crop.shape[2]] = crop
        torch.testing.assert_close(made.images[row], expected, atol=1e-5, rtol=0)


def test_colours_move_a_little():
    made = cutmix(images := torch.full((200, 3, 20, 20), 0.5), images, CONFIGS["cutmix"], stream(1))
    values = made.images[:, 0][made.pasted[:, 0]]
    assert values.min() < 0.46 and values.max() > 0.54
    assert ((values - 0.5).abs() <= 0.05 + 1e-4).all()


def test_area_aspect_and_position_are_uniform():
    height, width, count = 200, 220, 1500
    places = patch_places(count, height, width, stream(11))
    first = places.source[:, 0], places.target[:, 0]
    pixels = places.used.sum(dim=1)
    last = places.source.gather(1, pixels[:, None] - 1)[:, 0]
    down = last // width - first[0] // width + 1
    across = last % width - first[0] % width + 1
    assert torch.equal(down * across, pixels)
    area, aspect = pixels / (height * width), (across / down).log()
    span = torch.tensor(0.3).log().abs().item()
    assert stats.kstest(area.numpy(), stats.uniform(0.02, 0.13).cdf).pvalue > 1e-3
    assert aspect.min() < -0.97 * span and aspect.max() > 0.97 * span
    assert stats.kstest(aspect.numpy(), stats.uniform(-span, 2 * span).cdf).pvalue > 1e-3
    parts = [(corner // width) / (height - down) for corner in first]
    parts += [(corner % width) / (width - across) for corner in first]
    for one in parts:
        assert one.min() >= 0 and one.max() <= 1
        assert stats.chisquare(torch.histc(one.float(), 20, 0, 1).numpy()).pvalue > 1e-3
    assert abs(stats.pearsonr(parts[0], parts[1]).statistic) < 0.08, "cut and paste places must not go together"


def test_every_pixel_is_cut_and_pasted_in_time():
    places = patch_places(4000, 16, 20, stream(3))
    for numbers in (places.source, places.target):
        assert len(numbers[places.used].unique()) == 16 * 20


@pytest.mark.parametrize(("height", "width"), [(50, 600), (600, 50)])
def test_long_images_keep_the_area(height, width):
    places = patch_places(1500, height, width, stream(4))
    share = places.used.sum(dim=1) / (height * width)
    assert stats.kstest(share.numpy(), stats.uniform(0.02, 0.13).cdf).pvalue > 1e-3


def test_part_of_a_batch_gives_the_same_pixels():
    """Lists filled up to a longer patch, and the other rows, leave no trace: not even in the last bit."""
    images, places, jitter = photos(6), patch_places(6, 40, 52, stream(5)), draw_jitter(6, 0.1, stream(6))
    whole = move(images, places, jitter)
    for row in range(6):
        own, length = slice(row, row + 1), int(places.used[row].sum())
        alone = Places(*(part[own, :length] for part in (places.source, places.target, places.used)))
        made = move(images[own], alone, Jitter(jitter.amounts[own], jitter.order[own]))
        assert torch.equal(made.images, whole.images[own]) and torch.equal(made.pasted, whole.pasted[own])


# -- cutmix_pair ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(height=SIDES, width=SIDES, seed=SEEDS)
def test_a_box_of_the_donor_at_the_same_place(height, width, seed):
    receivers, donors = photos(6, height, width, 1), photos(6, height, width, 2)
    made = cutmix_pair(receivers, donors, CONFIGS["cutmix_pair"], stream(seed))
    inside = made.pasted.expand_as(receivers)
    assert torch.equal(made.images[inside], donors[inside])
    assert torch.equal(made.images[~inside], receivers[~inside])
    top, bottom, left, right = edges(made.pasted)
    pixels = made.pasted.sum(dim=(1, 2, 3))
    assert torch.equal(pixels, (bottom - top) * (right - left))
    assert (pixels >= 0.02 * height * width).all() and (pixels <= 0.5 * height * width).all()


def test_boxes_follow_the_definition():
    """Sides, areas and centres against a slow simulation in real numbers."""
    height, width, count = 800, 1000, 4000
    left, right, top, bottom = pair_boxes(count, height, width, stream(9)).double().numpy()
    rng, expected = default_rng(5), []
    while len(expected) < count:
        side, x, y = (1 - rng.beta(1, 1)) ** 0.5, rng.random(), rng.random()
        box = max(x - side / 2, 0), min(x + side / 2, 1), max(y - side / 2, 0), min(y + side / 2, 1)
        if 0.02 <= (box[1] - box[0]) * (box[3] - box[2]) <= 0.5:
            expected.append(box)
    for ours, theirs in zip(
        (left / width, right / width, top / height, bottom / height), zip(*expected, strict=True), strict=True
    ):
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3
    area = (right - left) * (bottom - top) / (height * width)
    assert stats.ks_2samp(area, [(b - a) * (d - c) for a, b, c, d in expected]).pvalue > 1e-3
    free = (left > 0) & (right < width) & (top > 0) & (bottom < height)
    ratio = ((right - left) / width / ((bottom - top) / height))[free]
    assert free.sum() > 200 and abs(ratio - 1).max() < 0.02, "a box that is not clipped has the image's shape"


def test_every_pixel_is_pasted_in_time_also_the_corners():
    receivers = torch.zeros(3000, 3, 12, 15)
    pasted = cutmix_pair(receivers, receivers, CONFIGS["cutmix_pair"], stream(3)).pasted.float().mean(dim=(0, 1))
    assert pasted.min() > 0.02
    assert pasted[6, 7] > pasted[0, 0], "clipping makes the border rarer than the middle"
    torch.testing.assert_close(pasted, pasted.flip(0), atol=0.06, rtol=0)
    torch.testing.assert_close(pasted, pasted.flip(1), atol=0.06, rtol=0)
