"""The pictures of features and augmentations: what must be on them is on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from sctune.tracking import feature_plots as plots

RED, GREEN, BLUE, CYAN = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 255, 255)


@dataclass(frozen=True)
class Example:
    donor: np.ndarray
    receiver: np.ndarray
    saliency: np.ndarray | None
    mask: np.ndarray
    result: np.ndarray


def plain(colour: tuple[int, int, int], size: int = 16) -> np.ndarray:
    return np.full((size, size, 3), colour, np.uint8)


EXAMPLE = Example(plain(RED), plain(GREEN), np.eye(16), np.eye(16) > 0, plain(BLUE))
"""Every part of it has a colour of its own."""


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        assert opened.format == "PNG"
        return np.asarray(opened.convert("RGB")).astype(int)


def share(pixels: np.ndarray, colour: tuple[float, ...], tolerance: int = 3) -> float:
    return float((abs(pixels - np.array(colour)) <= tolerance).all(axis=-1).mean())


def features(path: Path, groups: tuple[str, ...], caption: tuple[str, ...] = ("caption",)) -> Path:
    names = [group for group in groups for _ in range(20)]
    points = np.random.default_rng(0).normal(size=(len(names), 2))
    panels = [plots.Panel(title, points, names, "silhouette: unseen 0.1") for title in ("before", "after")]
    labels = {group: f"{group} (20)" for group in groups}
    return plots.feature_picture(panels, labels, "study s, trial 1", caption, path)


def test_each_group_has_its_colour_in_the_picture(tmp_path: Path) -> None:
    everything = picture(features(tmp_path / "all.png", tuple(plots.STYLES)))
    some = picture(features(tmp_path / "some.png", ("normal", "seen")))
    assert everything.std() > 10
    for group, (colour, _) in plots.STYLES.items():
        # markers are drawn slightly transparent on white
        drawn = tuple(255 * (0.8 * part + 0.2) for part in to_rgb(colour))
        assert share(everything, drawn) > 1e-4, group
        assert (share(some, drawn) > 1e-4) == (group in ("normal", "seen")), group


def test_no_two_groups_share_a_colour_or_a_marker() -> None:
    colours, markers = zip(*plots.STYLES.values(), strict=True)
    assert len(set(colours)) == len(set(markers)) == len(plots.STYLES)


def test_the_same_points_give_the_same_file(tmp_path: Path) -> None:
    first = features(tmp_path / "first.png", ("normal", "unseen"))
    assert first.read_bytes() == features(tmp_path / "second.png", ("normal", "unseen")).read_bytes()


def test_a_long_caption_makes_the_picture_higher_and_not_wider(tmp_path: Path) -> None:
    short = picture(features(tmp_path / "short.png", ("normal",)))
    long = picture(features(tmp_path / "long.png", ("normal",), ("many words " * 80,)))
    assert long.shape[1] == short.shape[1]
    assert long.shape[0] > short.shape[0]
    # nothing is cut off at the edge: a white frame is left
    assert (long[:, -3:] == 255).all() and (long[-3:] == 255).all()


def test_the_making_of_a_pseudo_anomaly_shows_all_its_parts(tmp_path: Path) -> None:
    made = plots.making_picture([EXAMPLE, EXAMPLE], [plain(CYAN)], "title", tmp_path / "a.png", "Images: somebody")
    pixels = picture(made)
    parts = [share(pixels, colour) for colour in (RED, GREEN, BLUE, CYAN)]
    assert parts[0] == pytest.approx(parts[1], rel=0.05) == pytest.approx(2 * parts[3], rel=0.05)
    assert min(parts) > 0.02
    # the upper end of the saliency's colour map
    assert share(pixels, (252, 253, 191)) > 1e-4
    without = picture(plots.making_picture([EXAMPLE], [], "title", tmp_path / "b.png", None))
    assert share(without, CYAN) == 0
    assert (pixels[-25:].mean(axis=-1) < 150).any(), "the attribution stands under the picture"


def test_a_donor_is_shown_only_where_another_image_is_one(tmp_path: Path) -> None:
    own = replace(EXAMPLE, donor=EXAMPLE.receiver, saliency=None)
    pixels = picture(plots.making_picture([own], [], "title", tmp_path / "own.png", None))
    wide = picture(plots.making_picture([EXAMPLE], [], "title", tmp_path / "pair.png", None))
    assert share(pixels, RED) == 0
    # mask, receiver and result instead of five columns
    assert pixels.shape[1] < 0.7 * wide.shape[1]


def test_groups_of_images_are_one_line_each(tmp_path: Path) -> None:
    strips = [plots.Strip("normal", [plain(RED)] * 4), plots.Strip("pseudo", [plain(BLUE)] * 2)]
    pixels = picture(plots.group_picture(strips, "title", tmp_path / "groups.png", "Images: somebody"))
    assert share(pixels, RED) == pytest.approx(2 * share(pixels, BLUE), rel=0.05)
    rows = {
        name: np.flatnonzero((pixels == colour).all(axis=-1).any(axis=1))
        for name, colour in (("red", RED), ("blue", BLUE))
    }
    assert rows["red"].max() < rows["blue"].min()


@pytest.mark.parametrize("count", [1, 3])
def test_every_augmentation_has_its_block(tmp_path: Path, count: int) -> None:
    own = replace(EXAMPLE, donor=EXAMPLE.receiver, saliency=None, result=plain(CYAN))
    blocks = {"saliencycut": [EXAMPLE] * count, "cutmix": [own] * count, "cutmix_pair": [EXAMPLE] * count}
    pixels = picture(plots.augmentation_picture(blocks, "title", ["Images: somebody"], tmp_path / "all.png"))
    # two blocks show donor and receiver, all three a receiver
    assert share(pixels, GREEN) == pytest.approx(1.5 * share(pixels, RED), rel=0.1)
    assert share(pixels, CYAN) == pytest.approx(share(pixels, BLUE) / 2, rel=0.1)
    assert (pixels[-25:].mean(axis=-1) < 150).any()
