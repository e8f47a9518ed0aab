"""Turns, mirrors, shifts, brightness and contrast of training images: by hand, by numpy, and each by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as reference

from sctune.augment.changes import changed, move, quarter_turned
from sctune.config import AugmentConfig
from sctune.data.batches import rotate, rotation_angles, stream

SIDE = 8
STILL = {"rotation": "none"}


def pictures(count: int = 40, side: int = SIDE) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.25


def made(images: Tensor, step: int = 0, **values: Any) -> tuple[Tensor, Tensor]:
    return changed(images, AugmentConfig(**values), 7, "rotation", step)


def test_by_default_images_turn_freely_and_nothing_else() -> None:
    images = pictures()
    turned, valid = rotate(images, rotation_angles(len(images), 180.0, stream(7, "rotation", 3)))
    found = made(images, 3)
    assert torch.equal(found[0], turned) and torch.equal(found[1], valid)


def test_without_a_turn_nothing_changes() -> None:
    images = pictures()
    for values in (STILL, {"rotation_degrees": 0.0}):
        found, valid = made(images, **values)
        assert torch.equal(found, images) and valid.all()


def test_quarter_turns_are_those_of_numpy_and_equally_often() -> None:
    images = pictures(400)
    found, valid = made(images, rotation="quarter")
    assert valid.all()
    turns = []
    for image, result in zip(images.numpy(), found.numpy(), strict=True):
        same = [turn for turn in range(4) if np.array_equal(np.rot90(image, turn, (1, 2)), result)]
        turns += same
        assert len(same) == 1
    counts = np.bincount(turns, minlength=4)
    assert (counts > 70).all(), counts
    assert torch.equal(quarter_turned(images[:4], torch.arange(4))[2], images[2].rot90(2, (1, 2)))


def test_a_free_turn_by_ninety_degrees_is_a_quarter_turn() -> None:
    images = pictures(3)
    turned, _ = rotate(images, torch.tensor([90.0, 180.0, -90.0]))
    assert torch.equal(quarter_turned(images, torch.tensor([1, 2, 3])), turned)


@pytest.mark.parametrize(
    ("flip", "expected"),
    [("horizontal", {(), (2,)}), ("vertical", {(), (1,)}), ("both", {(), (1,), (2,), (1, 2)})],
)
def test_mirrors(flip: str, expected: set[tuple[int, ...]]) -> None:
    images = pictures(200)
    found, valid = made(images, **STILL, flip=flip)
    assert valid.all()
    seen: list[tuple[int, ...]] = []
    for image, result in zip(images, found, strict=True):
        seen += [axes for axes in ((), (1,), (2,), (1, 2)) if torch.equal(image.flip(axes), result)]
    assert len(seen) == 200 and set(seen) == expected
    assert min(seen.count(axes) for axes in expected) > 0.6 * 200 / len(expected)


def test_a_shift_by_hand() -> None:
    row = torch.arange(1.0, 5.0).expand(1, 1, 4, 4)
    still = torch.zeros(1, 2, dtype=torch.bool)
    assert move(row, still, torch.tensor([[0, 2]]))[0, 0, 0].tolist() == [2, 1, 1, 2]
    assert move(row, still, torch.tensor([[0, -1]]))[0, 0, 3].tolist() == [2, 3, 4, 4]
    assert move(row.mT, still, torch.tensor([[1, 0]]))[0, 0, :, 0].tolist() == [1, 1, 2, 3]
    # mirrored first, then moved
    assert move(row, torch.tensor([[False, True]]), torch.tensor([[0, 1]]))[0, 0, 0].tolist() == [4, 4, 3, 2]


def test_shifts_reach_as_far_as_they_are_allowed_and_say_what_is_mirrored() -> None:
    side, most = 20, 4
    images = pictures(300, side)
    found, valid = made(images, **STILL, shift=most / side)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (most, most), (most, most)), "symmetric")
    seen = set()
    for number, (result, real) in enumerate(zip(found.numpy(), valid.numpy(), strict=True)):
        (place,) = [
            (down, across)
            for down in range(-most, most + 1)
            for across in range(-most, most + 1)
            if np.array_equal(
                padded[number, :, most - down : most - down + side, most - across : most - across + side], result
            )
        ]
        seen.add(place)
        expected = np.zeros((side, side), bool)
        rows, columns = (slice(max(0, by), side + min(0, by)) for by in place)
        expected[rows, columns] = True
        assert np.array_equal(real[0], expected)
    for axis in (0, 1):
        assert {place[axis] for place in seen} == set(range(-most, most + 1))


@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_colours_are_those_of_torchvision_with_one_factor_an_image(name: str) -> None:
    images = pictures(200)
    found, valid = made(images, **STILL, **{name: 0.3})
    adjust = {"brightness": reference.adjust_brightness, "contrast": reference.adjust_contrast}[name]
    factors = 1 + 0.3 * (2 * torch.rand(200, generator=stream(7, "rotation", 0, name)) - 1)
    expected = torch.stack([adjust(image, float(factor)) for image, factor in zip(images, factors, strict=True)])
    assert valid.all() and torch.allclose(found, expected, atol=1e-6)
    assert factors.min() < 0.75 and factors.max() > 1.25


def test_corners_stay_black_whatever_the_colours() -> None:
    found, valid = made(pictures(side=32), brightness=0.4, contrast=0.4)
    assert not valid.all() and (found[~valid.expand_as(found)] == 0).all()
    assert found[valid.expand_as(found)].min() > 0


def test_each_change_has_draws_of_its_own() -> None:
    """The turn of an image is the same with and without the other changes."""
    images = pictures()
    alone, _ = made(images, rotation="quarter")
    both, _ = made(images, rotation="quarter", brightness=0.2)
    factors = 1 + 0.2 * (2 * torch.rand(len(images), generator=stream(7, "rotation", 0, "brightness")) - 1)
    assert torch.allclose(both, alone * factors[:, None, None, None], atol=1e-6)
    other, _ = made(images, 1, rotation="quarter", flip="both", shift=0.2, brightness=0.1, contrast=0.1)
    again, _ = made(images, 1, rotation="quarter", flip="both", shift=0.2, brightness=0.1, contrast=0.1)
    assert torch.equal(other, again) and not torch.equal(other, both)


@pytest.mark.parametrize("rotation", ["free", "quarter", "none"])
def test_images_are_never_written_to_and_do_not_mix(rotation: str) -> None:
    images = pictures(12)
    before = images.clone()
    values = {"rotation": rotation, "flip": "both", "shift": 0.3, "brightness": 0.2, "contrast": 0.2}
    whole, _ = made(images, **values)
    assert torch.equal(images, before)
    other = images.clone()
    other[5] = 0.9
    again, _ = made(other, **values)
    same = torch.arange(12) != 5
    assert torch.equal(again[same], whole[same])
