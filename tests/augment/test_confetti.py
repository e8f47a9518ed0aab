"""Confetti noise beside a second implementation with loops, and its properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sctune.augment.confetti import confetti


def pictures(count: int, height: int = 40, width: int = 40) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_loops(images: Tensor, count: float, sizes: tuple[float, float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Result and mask from the same draws, a rectangle at a time."""
    drawn = generator(seed)
    numbers = np.maximum(1, torch.poisson(torch.full((len(images),), count), generator=drawn).numpy().astype(int))
    draws = torch.rand(len(images), int(numbers.max()), 7, generator=drawn).numpy()
    height, width = images.shape[2:]
    side = min(height, width)
    found, mask = images.numpy().copy(), np.zeros((len(images), height, width), bool)
    for image in range(len(images)):
        for number in range(numbers[image]):
            own = draws[image, number]
            down, across = (
                int(np.clip(np.round((sizes[0] + (sizes[1] - sizes[0]) * one) * side), 1, side)) for one in own[:2]
            )
            row, column = int(own[2] * (height - down + 1)), int(own[3] * (width - across + 1))
            found[image, :, row : row + down, column : column + across] += (2 * own[4:] - 1)[:, None, None]
            mask[image, row : row + down, column : column + across] = True
    return found.clip(0, 1), mask


@pytest.mark.parametrize(("height", "width"), [(40, 40), (33, 50)])
def test_shapes_beside_a_second_implementation(height: int, width: int) -> None:
    images = pictures(6, height, width)
    before = images.clone()
    made = confetti(images, 9.0, (0.05, 0.3), generator(5))
    expected, mask = by_loops(images, 9.0, (0.05, 0.3), 5)
    np.testing.assert_array_equal(made.pasted[:, 0].numpy(), mask)
    np.testing.assert_allclose(made.images.numpy(), expected, atol=1e-5)
    assert torch.equal(images, before)


def test_outside_of_the_confetti_nothing_changes() -> None:
    images = pictures(8)
    made = confetti(images, 40.0, (2 / 32, 3 / 32), generator())
    outside = ~made.pasted.expand_as(images)
    assert torch.equal(made.images[outside], images[outside]) and 0.1 < float(made.pasted.float().mean()) < 0.5
    assert float(made.images.min()) >= 0 and float(made.images.max()) <= 1
    changed = (made.images - images).abs().sum(dim=1, keepdim=True)[made.pasted]
    assert float((changed > 0.01).float().mean()) > 0.95


def test_a_single_one_has_one_colour_and_a_side_within_bounds() -> None:
    images = torch.full((200, 3, 32, 32), 0.5)
    # hardly any: the one that each image has at least
    made = confetti(images, 1e-6, (2 / 32, 3 / 32), generator())
    seen = set()
    for one, mask in zip(made.images, made.pasted[:, 0], strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        down, across = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        assert int(mask.sum()) == down * across
        seen.add((down, across))
        assert (one[:, mask].amax(dim=1) == one[:, mask].amin(dim=1)).all()
    assert seen == {(2, 2), (2, 3), (3, 2), (3, 3)}
    # uniform in [-1, 1], about 0.5 and clipped: a quarter lies at either end
    colours = torch.stack([one[:, mask].mean(dim=1) for one, mask in zip(made.images, made.pasted[:, 0], strict=True)])
    for end in (0.0, 1.0):
        assert 0.18 < float(((colours - end).abs() < 1e-4).float().mean()) < 0.32


def test_the_same_generator_gives_the_same_confetti() -> None:
    images = pictures(3)
    first = confetti(images, 5.0, (0.1, 0.2), generator(1))
    assert torch.equal(first.images, confetti(images, 5.0, (0.1, 0.2), generator(1)).images)
    assert not torch.equal(first.images, confetti(images, 5.0, (0.1, 0.2), generator(2)).images)


def test_the_largest_fits_and_the_smallest_is_a_pixel() -> None:
    images = pictures(4, 16, 24)
    assert float(confetti(images, 1e-6, (1e-4, 1e-4), generator()).pasted.sum()) == 4
    whole = confetti(images, 1e-6, (1.0, 1.0), generator()).pasted
    assert whole.sum(dim=(1, 2, 3)).tolist() == [256] * 4


def test_what_no_maker_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="makers need floats"):
        confetti(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), 5.0, (0.1, 0.2), generator())
    with pytest.raises(ValueError, match="too small to cut"):
        confetti(torch.zeros(2, 3, 4, 32), 5.0, (0.1, 0.2), generator())
