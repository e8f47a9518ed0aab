"""The proxy makers on real cells: bounded regions, the rest untouched, the same pixels in any order."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from sctune.augment.proxy import MAKERS, make_proxy_set, perlin_noise, proxy_digest
from sctune.data.catalog import open_dataset
from sctune.data.decode import Decoding, decode_image

ELPV = open_dataset("elpv")
NAMES = [file.path for file in ELPV.normals[:100:5]]
IMAGES = np.stack([decode_image(ELPV.root / name, Decoding(96)) for name in NAMES])
MADE = make_proxy_set(IMAGES, NAMES, 7)


def changed(made: NDArray[np.uint8], images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return (made != images).any(axis=-1)


@pytest.mark.parametrize("maker", sorted(MAKERS))
def test_the_changed_region_is_2_to_30_percent(maker: str) -> None:
    # white noise, so that nearly every pixel of a region really changes
    rng = np.random.default_rng(0)
    for number in range(60):
        image, texture = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
        made = MAKERS[maker](image, np.random.default_rng(number), texture)
        assert made.shape == image.shape and made.dtype == np.uint8
        assert 0.02 <= changed(made, image).mean() <= 0.30


@pytest.mark.parametrize("maker", sorted(MAKERS))
def test_the_changes_are_seen(maker: str) -> None:
    for made, image in zip(MADE[maker], IMAGES, strict=True):
        region = changed(made, image)
        assert 0.015 <= region.mean() <= 0.30
        difference = np.abs(made.astype(int) - image.astype(int)).mean(axis=-1)
        assert difference.max() >= 8, "grey levels"


@pytest.mark.parametrize("maker", ["warp", "blur"])
def test_discs_are_local(maker: str) -> None:
    for made, image in zip(MADE[maker], IMAGES, strict=True):
        rows, columns = np.nonzero(changed(made, image))
        # a disc of at most a quarter of the image: no wider than 2 sqrt(.25 / pi) of its side
        assert max(np.ptp(rows), np.ptp(columns)) + 1 <= 2 * np.sqrt(0.25 / np.pi) * 96 + 1


def test_blur_smooths_and_warp_moves() -> None:
    for number, image in enumerate(IMAGES):
        region = changed(MADE["blur"][number], image)
        assert MADE["blur"][number][region].std() < image[region].std()
    moved = [changed(made, image) for made, image in zip(MADE["warp"], IMAGES, strict=True)]
    means = [
        abs(float(made[mask].mean()) - float(image[mask].mean()))
        for made, image, mask in zip(MADE["warp"], IMAGES, moved, strict=True)
    ]
    assert np.median(means) < 4  # grey levels are moved, not made


def test_a_flat_image_is_left_alone_by_warp_and_blur() -> None:
    flat = np.full((40, 40, 3), 90, np.uint8)
    for maker in ("warp", "blur"):
        np.testing.assert_array_equal(MAKERS[maker](flat, np.random.default_rng(0), flat), flat)
    assert (MAKERS["perlin"](flat, np.random.default_rng(0), flat) != flat).any()


def test_same_seed_same_pixels_in_any_order() -> None:
    again = make_proxy_set(IMAGES, NAMES, 7)
    order = np.random.default_rng(3).permutation(len(NAMES))
    shuffled = make_proxy_set(IMAGES[order], [NAMES[row] for row in order], 7)
    for maker in MAKERS:
        np.testing.assert_array_equal(again[maker], MADE[maker])
        np.testing.assert_array_equal(shuffled[maker], MADE[maker][order])
    assert proxy_digest(again) == proxy_digest(MADE) != proxy_digest(make_proxy_set(IMAGES, NAMES, 8))
    assert proxy_digest(shuffled) != proxy_digest(MADE)


def test_another_process_makes_the_same_pixels() -> None:
    code = (
        "import numpy as np\n"
        "from sctune.augment.proxy import make_proxy_set, proxy_digest\n"
        "images = np.random.RandomState(0).randint(0, 256, (4, 32, 32, 3)).astype(np.uint8)\n"
        "print(proxy_digest(make_proxy_set(images, list('abcd'), 1)))\n"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    images = np.random.RandomState(0).randint(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    assert proxy_digest(make_proxy_set(images, list("abcd"), 1)) == other


def test_every_image_is_changed_in_its_own_way() -> None:
    same = np.repeat(IMAGES[:1], 6, axis=0)
    for made in make_proxy_set(same, list("abcdef"), 0).values():
        assert len({hashlib.sha256(image.tobytes()).hexdigest() for image in made}) == 6


def test_makers_leave_their_input_alone_and_check_names() -> None:
    before = IMAGES.copy()
    make_proxy_set(IMAGES, NAMES, 1)
    np.testing.assert_array_equal(IMAGES, before)
    with pytest.raises(ValueError, match="different names"):
        make_proxy_set(IMAGES[:2], ["a", "a"], 0)
    single = make_proxy_set(IMAGES[:1], ["a"], 0)
    assert all(changed(made[0], IMAGES[0]).any() for made in single.values())


def test_perlin_noise_is_zero_on_its_lattice_and_bounded() -> None:
    # 2 pixels per cell lie at 1/4 and 3/4: the noise of a cell with slopes (1, 0) there is known by hand
    noise = perlin_noise((512, 256), (4, 2), np.random.default_rng(0))
    assert noise.shape == (512, 256) and np.abs(noise).max() <= 1.0 and noise.std() > 0.1
    lattice = noise[127:129, 127:129].mean()
    assert abs(lattice) < 1e-3
    assert np.abs(np.diff(noise, axis=0)).max() < 0.05
