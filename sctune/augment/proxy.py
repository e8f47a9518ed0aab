"""Makers of the proxy objective: pseudo anomalies that no search space trains with (DESIGN 6).

They stand in where there are too few labelled anomalies to select by. Each changes one region of a normal image
and leaves the rest as it is; the same seed and file name give the same pixels in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Pixels = NDArray[np.uint8]
Map = NDArray[np.float64]
Maker = Callable[[Pixels, np.random.Generator, Pixels], Pixels]

LEAST_AREA, MOST_AREA = 0.04, 0.25
"""Bounds of the changed region as a share of the image; soft edges stay within 0.02 and 0.30."""

DIRECTIONS = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)]) / np.sqrt(
    [1, 1, 1, 1, 2, 2, 2, 2]
).reshape(-1, 1)


def perlin_noise(shape: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator) -> Map:
    """Gradient noise [H, W], about -1 to 1, with `cells` (rows, columns) lattice cells over the image."""
    slopes = DIRECTIONS[rng.integers(len(DIRECTIONS), size=(cells[0] + 1, cells[1] + 1))]
    places = [(np.arange(side) + 0.5) * count / side for side, count in zip(shape, cells, strict=True)]
    row, column = (place.astype(int) for place in places)
    down, right = places[0] - row, places[1] - column
    fade_down, fade_right = (part**3 * (part * (part * 6 - 15) + 10) for part in (down, right))

    def corner(below: int, beside: int) -> Map:
        slope = slopes[np.ix_(row + below, column + beside)]
        return np.asarray(slope[..., 0] * (down - below)[:, None] + slope[..., 1] * (right - beside)[None, :])

    top = corner(0, 0) + (corner(0, 1) - corner(0, 0)) * fade_right
    bottom = corner(1, 0) + (corner(1, 1) - corner(1, 0)) * fade_right
    return np.asarray((top + (bottom - top) * fade_down[:, None]) * np.sqrt(2))


def perlin(image: Pixels, rng: np.random.Generator, texture: Pixels) -> Pixels:
    """Blobs of Perlin noise, filled with a strongly changed texture of another normal image."""
    height, width = image.shape[:2]
    cells = 2 ** rng.integers(1, 4, size=2)
    noise = perlin_noise((height, width), (int(cells[0]), int(cells[1])), rng)
    area = rng.uniform(LEAST_AREA, MOST_AREA)
    mask = noise > np.quantile(noise, 1 - area)
    strength = rng.uniform(0.6, 1.0)
    filled = (1 - strength) * image + strength * _strange(texture, rng)
    return _inside(image, filled, mask)


def warp(image: Pixels, rng: np.random.Generator, texture: Pixels) -> Pixels:
    """A local elastic warp, strongest at the centre of a disc and none at its rim."""
    window = _disc(image.shape[:2], rng)
    height, width = image.shape[:2]
    side = min(height, width)
    shifts = np.stack([perlin_noise((height, width), (6, 6), rng) for _ in range(2)])
    shifts *= rng.uniform(0.06, 0.12) * side / np.abs(shifts).max()
    places = np.indices((height, width)) + shifts * window
    bands = [ndimage.map_coordinates(image[..., band], places, order=1, mode="mirror") for band in range(3)]
    return _inside(image, np.stack(bands, axis=-1), window > 0)


def blur(image: Pixels, rng: np.random.Generator, texture: Pixels) -> Pixels:
    """A local Gaussian blur that fades out towards the rim of a disc."""
    window = _disc(image.shape[:2], rng)[..., None]
    sigma = rng.uniform(0.03, 0.06) * min(image.shape[:2])
    smooth = ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0), mode="mirror", truncate=3.0)
    # full strength over most of the disc: a faint blur could not be told from focus
    share = np.minimum(1.0, 2.5 * window)
    return _inside(image, (1 - share) * image + share * smooth, window[..., 0] > 0)


MAKERS: dict[str, Maker] = {"perlin": perlin, "warp": warp, "blur": blur}
"""Name -> maker(image uint8 [H, W, 3], rng, texture uint8 [H, W, 3]) -> uint8 [H, W, 3]."""


def make_proxy_set(images: Pixels, names: Sequence[str], seed: int) -> dict[str, Pixels]:
    """Every maker applied to every image: maker -> uint8 [N, H, W, 3], rows as in images [N, H, W, 3].

    names: unique file names. An image's randomness is keyed by (seed, maker, name); its texture is drawn among the
    other images by name, so the order of the images does not matter.
    """
    if len(names) != len(images) or len(set(names)) != len(names):
        raise ValueError(f"{len(images)} images need as many different names, got {len(set(names))}")
    listed = sorted(names)
    row = {name: number for number, name in enumerate(names)}
    made = {maker: np.empty_like(images) for maker in MAKERS}
    for maker, make in MAKERS.items():
        for number, name in enumerate(names):
            rng = _generator(seed, maker, name)
            # another image than itself, where there is one
            step = int(rng.integers(1, max(2, len(listed))))
            other = listed[(listed.index(name) + step) % len(listed)]
            made[maker][number] = make(images[number], rng, images[row[other]])
    return made


def proxy_digest(made: Mapping[str, Pixels]) -> str:
    """SHA-256 of a proxy set: makers, shapes and pixels."""
    digest = hashlib.sha256()
    for maker in sorted(made):
        digest.update(f"{maker}:{made[maker].shape}:".encode())
        digest.update(np.ascontiguousarray(made[maker]).tobytes())
    return digest.hexdigest()


def _generator(seed: int, maker: str, name: str) -> np.random.Generator:
    key = hashlib.sha256(f"{seed}\n{maker}\n{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "big")))


def _disc(shape: tuple[int, ...], rng: np.random.Generator) -> Map:
    """A window [H, W] that falls from 1 at its centre to 0 at the rim of a disc that lies inside the image."""
    height, width = shape[:2]
    area = rng.uniform(LEAST_AREA, MOST_AREA) * height * width
    radius = min(np.sqrt(area / np.pi), min(height, width) / 2)
    row = rng.uniform(radius, height - radius)
    column = rng.uniform(radius, width - radius)
    down, right = np.ogrid[:height, :width]
    distance = (down + 0.5 - row) ** 2 + (right + 0.5 - column) ** 2
    return np.asarray(np.maximum(0.0, 1 - distance / radius**2))


def _strange(texture: Pixels, rng: np.random.Generator) -> Map:
    """The texture turned, enlarged, shifted, and with its brightness inverted or bent: hardly the normal one."""
    height, width = texture.shape[:2]
    turned = np.rot90(texture, int(rng.integers(4))) if height == width else texture
    turned = turned[:, ::-1] if rng.integers(2) else turned
    turned = np.roll(turned, (int(rng.integers(height)), int(rng.integers(width))), axis=(0, 1))
    # every second pixel row and column, tiled: the structure halves its scale
    small = turned[::2, ::2]
    tiled = np.tile(small, (2, 2, 1))[:height, :width].astype(np.float64)
    if rng.integers(2):
        tiled = 255 - tiled
    middle = tiled.mean()
    contrast = rng.uniform(1.2, 2.0)
    shift = rng.uniform(40, 90) * (1 if middle < 128 else -1)
    return np.asarray(np.clip((tiled - middle) * contrast + middle + shift, 0, 255))


def _inside(image: Pixels, changed: NDArray[np.generic], mask: NDArray[np.bool_]) -> Pixels:
    values = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
    return np.where(mask[..., None], values, image)
