"""Batched colour jitter: every operation against torchvision's, order, mask and ranges."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms.v2 import functional as reference

from sctune.augment.jitter import (
    OPERATIONS,
    Jitter,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    draw_jitter,
    jitter_colours,
)
from sctune.data.batches import stream

REFERENCES = {name: getattr(reference, f"adjust_{name}") for name in OPERATIONS}
CORNERS = [
    (0, 0, 0),
    (1, 1, 1),
    (0.5, 0.5, 0.5),
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
    (1, 1, 0),
    (0, 1, 1),
    (1, 0, 1),
    (1e-7, 0, 0),
]


def colours(count=3, height=12, width=17, seed=0):
    """Random colours, some of them grey, and the corners of the colour cube in the first row."""
    images = torch.rand(count, 3, height, width, generator=stream(seed, "colours"))
    images[:, 1:, -2:] = images[:, :1, -2:]
    images[:, :, 0, : len(CORNERS)] = torch.tensor(CORNERS).T
    return images


def adjust(name, pixels, amount, used=None):
    used = torch.ones_like(pixels[:, :1], dtype=torch.bool) if used is None else used
    if name == "contrast":
        return adjust_contrast(pixels, amount, used)
    return {"brightness": adjust_brightness, "saturation": adjust_saturation, "hue": adjust_hue}[name](pixels, amount)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("amounts", [(0.9, 1.0, 1.1), (0.0, 0.3, 2.5)])
def test_each_operation_is_torchvisions(name, amounts):
    pixels = colours()
    amount = torch.tensor(amounts) - 1 if name == "hue" else torch.tensor(amounts)
    amount = amount.clamp(-0.5, 0.5) if name == "hue" else amount
    made = adjust(name, pixels, amount)
    for row, value in enumerate(amount.tolist()):
        torch.testing.assert_close(made[row], REFERENCES[name](pixels[row], value), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_change_and_a_change(name):
    pixels = colours()
    still = torch.zeros(3) if name == "hue" else torch.ones(3)
    torch.testing.assert_close(adjust(name, pixels, still), pixels, atol=1e-6, rtol=0)
    assert (adjust(name, pixels, still + 0.1) - pixels).abs().max() > 0.01


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), strength=st.sampled_from([0.02, 0.1, 0.5]), dtype=st.sampled_from(["f4", "f8"]))
def test_whole_jitter_is_torchvisions_in_the_drawn_order(seed, strength, dtype):
    pixels = colours(4, seed=seed).to(torch.float32 if dtype == "f4" else torch.float64)
    jitter = draw_jitter(4, strength, stream(seed, "jitter"))
    made = jitter_colours(pixels, torch.ones_like(pixels[:, :1], dtype=torch.bool), jitter)
    assert made.dtype == pixels.dtype and made.min() >= 0 and made.max() <= 1
    for row in range(4):
        expected = pixels[row]
        for number in jitter.order[row].tolist():
            expected = REFERENCES[OPERATIONS[number]](expected, jitter.amounts[row, number].item())
        torch.testing.assert_close(made[row], expected, atol=1e-5, rtol=0)


def test_order_matters_so_the_test_above_sees_it():
    pixels, amounts = colours(2), torch.tensor([[1.1, 0.9, 1.1, 0.1]] * 2, dtype=torch.float64)
    jitter = Jitter(amounts, torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]]))
    made = jitter_colours(pixels[:1].expand(2, -1, -1, -1), torch.ones(2, 1, 12, 17, dtype=torch.bool), jitter)
    assert (made[0] - made[1]).abs().max() > 1e-3


def test_contrast_takes_the_mean_of_the_used_pixels_only():
    pixels = colours(2)
    used = torch.zeros(2, 1, 12, 17, dtype=torch.bool)
    used[0, :, 2:9, 3:11], used[1, :, 5:, :4] = True, True
    factor = torch.tensor([0.5, 1.5])
    made = adjust_contrast(pixels, factor, used)
    for row, crop in enumerate([(slice(2, 9), slice(3, 11)), (slice(5, None), slice(0, 4))]):
        inside = (row, slice(None), *crop)
        expected = reference.adjust_contrast(pixels[inside], factor[row].item())
        torch.testing.assert_close(made[inside], expected, atol=1e-5, rtol=0)


def test_pixels_out_of_use_do_not_reach_the_used_ones():
    pixels, used = colours(3), torch.zeros(3, 1, 12, 17, dtype=torch.bool)
    used[:, :, :6] = True
    other = pixels.clone()
    other[:, :, 6:] = torch.rand(3, 3, 6, 17, generator=stream(1, "noise"))
    jitter = draw_jitter(3, 0.1, stream(2, "jitter"))
    assert torch.equal(jitter_colours(pixels, used, jitter)[:, :, :6], jitter_colours(other, used, jitter)[:, :, :6])


def test_layout_of_the_pixels_does_not_matter_and_they_stay_as_they_are():
    pixels = colours(3)
    before, used, jitter = pixels.clone(), torch.ones(3, 1, 12, 17, dtype=torch.bool), draw_jitter(3, 0.1, stream(5))
    made = jitter_colours(pixels, used, jitter)
    assert torch.equal(pixels, before)
    last = pixels.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(jitter_colours(last, used, jitter), made, atol=1e-6, rtol=0)
    flat = jitter_colours(pixels.flatten(2), used.flatten(2), jitter)
    torch.testing.assert_close(flat.view_as(made), made, atol=1e-6, rtol=0)


def test_grey_pixels_keep_their_grey():
    pixels = torch.linspace(0, 1, 50).expand(1, 3, 50)
    assert torch.equal(adjust_hue(pixels, torch.tensor([0.1])), pixels)
    # the luma weights sum to 0.9999, in torchvision as here
    torch.testing.assert_close(adjust_saturation(pixels, torch.tensor([1.1])), pixels, atol=2e-5, rtol=0)


def test_draws_are_uniform_and_all_orders_come():
    jitter = draw_jitter(6000, 0.1, stream(3, "draws"))
    for number, centre in enumerate((1, 1, 1, 0)):
        values = jitter.amounts[:, number].numpy()
        assert abs(values - centre).max() <= 0.1
        assert stats.kstest(values, stats.uniform(centre - 0.1, 0.2).cdf).pvalue > 1e-3
    orders = Counter(map(tuple, jitter.order.tolist()))
    assert len(orders) == 24
    assert stats.chisquare(list(orders.values())).pvalue > 1e-3


def test_no_images():
    jitter = draw_jitter(0, 0.1, stream(1))
    assert jitter_colours(torch.rand(0, 3, 5), torch.ones(0, 1, 5, dtype=torch.bool), jitter).shape == (0, 3, 5)
