"""Masks: what marks, how it is resized, which mask belongs to which image, and what is wrong with masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sctune.data.catalog import ImageFile, open_dataset
from sctune.data.decode import Decoding, decode_image
from sctune.data.masks import mask_notes, read_mask, square_mask, usable_masks
from sctune.errors import DataError
from tests.data.test_stored_values import npy, tiff, wide_png

MARKED = np.zeros((20, 30), bool)
MARKED[5:9, 11:20] = True


def save(path: Path, pixels: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


def grey(path: Path, height: int = 20, width: int = 30) -> None:
    save(path, np.full((height, width), 90, np.uint8))


def palette() -> Image.Image:
    image = Image.fromarray(MARKED.astype(np.uint8) * 3 + 1)
    image.putpalette([255, 255, 255, 0, 0, 0, 9, 9, 9, 9, 9, 9, 0, 128, 0])
    return image


def rgba(colour: Any, alpha: Any) -> Any:
    """MARKED decides between two: colours (r, g, b) and alphas, where it marks and where not."""
    grey = [np.where(MARKED, *pair) for pair in zip(*colour, strict=True)]
    return np.dstack([*grey, np.where(MARKED, *alpha)]).astype(np.uint8)


FORMS: dict[str, Any] = {
    "0 and 1": MARKED.astype(np.uint8),
    "0 and 255": MARKED.astype(np.uint8) * 255,
    "1 bit": MARKED,
    "16 bit": MARKED.astype(np.uint16),
    "a colour": MARKED[..., None] * np.array([0, 0, 7], np.uint8),
    "opaque": np.dstack([MARKED.astype(np.uint8) * 9] * 3 + [np.full(MARKED.shape, 255, np.uint8)]),
    "grey and opaque": np.dstack([MARKED.astype(np.uint8), np.full(MARKED.shape, 255, np.uint8)]),
    "palette": palette(),
    "alpha, white all over": rgba([(255,) * 3, (255,) * 3], (200, 0)),
    "alpha, black all over": rgba([(0,) * 3, (0,) * 3], (1, 0)),
    "hidden white": rgba([(9, 0, 0), (255,) * 3], (255, 0)),
    "red on opaque black": rgba([(255, 0, 0), (0,) * 3], (128, 255)),
    "all transparent": rgba([(9, 0, 0), (0,) * 3], (0, 0)),
    "grey with alpha": np.dstack([np.full(MARKED.shape, 255), MARKED * 255]).astype(np.uint8),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_value_marks(tmp_path: Path, form: str) -> None:
    assert np.array_equal(read_mask(save(tmp_path / "m.png", FORMS[form])), MARKED)


LOW = MARKED.astype(np.uint16)
WIDE: dict[str, bytes] = {
    "colours of 16 bits": wide_png(np.dstack([LOW * 0, LOW, LOW * 0])),
    "colours of 16 bits, tiff": tiff(np.dstack([LOW, LOW * 0, LOW * 0]), photometric="rgb"),
    "alpha of 16 bits": wide_png(np.dstack([LOW * 0, LOW * 65535])),
    "hidden colours of 16 bits": wide_png(np.dstack([LOW * 0 + 300] * 3 + [LOW * 65535])),
    "colours in floating point": tiff(np.dstack([LOW * 0, LOW * 0.1, LOW * 0]).astype("f4"), photometric="rgb"),
    "white is zero, 1 bit": tiff(~MARKED, photometric="miniswhite"),
    "white is zero, 8 bits": tiff(255 - MARKED.astype(np.uint8), photometric="miniswhite"),
    "white is zero, 16 bits": tiff(65535 - LOW, photometric="miniswhite"),
    "white is zero, 32 bits": tiff(2**32 - 1 - MARKED.astype(np.uint32), photometric="miniswhite"),
    "bands first": npy(np.stack([LOW * 0] * 4 + [LOW])),
    "bands last": npy(np.stack([LOW * 0] * 4 + [LOW], axis=-1)),
    "two bands": npy(np.stack([LOW * 0, LOW], axis=-1)),
}


@pytest.mark.parametrize("form", WIDE)
def test_any_value_marks_at_every_depth(tmp_path: Path, form: str) -> None:
    (tmp_path / "m").write_bytes(WIDE[form])
    assert np.array_equal(read_mask(tmp_path / "m"), MARKED)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (tiff(np.stack([LOW] * 2)[:, None], photometric="minisblack", metadata=None), "2 pages or frames"),
        (tiff(1 - MARKED.astype(np.float32), photometric="miniswhite"), "WhiteIsZero in float32, whose black is not"),
        (npy(np.where(MARKED, 1.0, np.nan)), "no finite numbers"),
        (npy(np.zeros((20, 3, 20))), r"shape \[20, 3, 20\] is no mask"),
        (npy(MARKED.astype("U1")), "an array of type <U1"),
    ],
)
def test_what_has_no_one_meaning_as_a_mask_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_mask(tmp_path / "m")


@pytest.mark.parametrize("kind", ["jpg", "webp", "tif"])
def test_what_compression_leaves_around_an_edge_marks_nothing(tmp_path: Path, kind: str) -> None:
    options = {"compression": "jpeg"} if kind == "tif" else {}
    blurred = save(tmp_path / f"m.{kind}", np.dstack([MARKED.astype(np.uint8) * 255] * 3), quality=60, **options)
    with Image.open(blurred) as image:
        assert ((np.asarray(image) > 0).any(axis=-1) != MARKED).sum() > 10, "it does leave something"
    assert (read_mask(blurred) != MARKED).sum() <= 4
    whole = save(tmp_path / "w.webp", np.dstack([MARKED.astype(np.uint8)] * 3), lossless=True, exact=True)
    assert np.array_equal(read_mask(whole), MARKED)


def test_other_files_of_masks(tmp_path: Path) -> None:
    assert np.array_equal(read_mask(save(tmp_path / "m.tif", MARKED.astype(np.float32) * 0.1)), MARKED)
    assert np.array_equal(read_mask(save(tmp_path / "m.tiff", MARKED.astype(np.int32))), MARKED)
    np.save(tmp_path / "m.npy", MARKED.astype(np.int64))
    assert np.array_equal(read_mask(tmp_path / "m.npy"), MARKED)
    blurred = read_mask(save(tmp_path / "m.jpg", MARKED.astype(np.uint8) * 255, quality=90))
    assert (blurred != MARKED).sum() <= 4, "what compression leaves around an edge marks nothing"
    turned = Image.Exif()
    turned[0x0112] = 6
    assert read_mask(save(tmp_path / "t.png", MARKED, exif=turned)).shape == (30, 20)
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"no\.png: not an image"):
        read_mask(tmp_path / "no.png")


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("shape", [(120, 200), (200, 120), (128, 128)])
def test_a_mask_lies_where_its_image_does(tmp_path: Path, resize: str, shape: tuple[int, int]) -> None:
    height, width = shape
    mask = np.zeros(shape, bool)
    mask[height // 3 : height // 2, width // 2 : width // 2 + 40] = True
    image = decode_image(save(tmp_path / "i.png", mask.astype(np.uint8) * 255), Decoding(64, resize))[..., 0] > 127
    found = square_mask(mask, 64, resize)
    assert found.shape == (64, 64) and found.sum() > 40
    assert (found != image).sum() <= 0.25 * found.sum(), "the same place, but for the border"


def test_it_marks_before_it_is_resized(tmp_path: Path) -> None:
    faint = save(tmp_path / "m.png", (np.indices((64, 64)).sum(axis=0) % 2 == 0).astype(np.uint8))
    grey(tmp_path / "i.png", 64, 64)
    usable = usable_masks(tmp_path, [ImageFile("i.png", 1, "x", mask=faint.name)], 32, "stretch")
    assert usable.rows == [0] and usable.masks.shape == (1, 32, 32) and usable.masks.any()


def layout(root: Path, **masks: str) -> dict[str, tuple[str, ...]]:
    """Image -> masks of the set in the MVTec layout with these masks of its image test/dent/7.png."""
    grey(root / "train/good/0.png")
    grey(root / "test/dent/7.png")
    for path in masks.values():
        save(root / "ground_truth" / path, MARKED)
    return {file.path: file.masks for file in open_dataset(str(root)).files}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("dent/7_mask.png", True),
        ("dent/7_Mask.bmp", True),
        ("dent/7.png", True),
        ("dent/7/000.png", True),
        ("dent/8_mask.png", False),
        ("scratch/7.png", False),
    ],
)
def test_names_of_masks(tmp_path: Path, name: str, found: bool) -> None:
    assert layout(tmp_path, one=name)["test/dent/7.png"] == ((f"ground_truth/{name}",) if found else ())
    notes = open_dataset(str(tmp_path)).notes
    assert any(f"1 mask(s) match no image, the first is ground_truth/{name}" in note for note in notes) != found


def test_masks_of_one_image_are_joined(tmp_path: Path) -> None:
    masks = layout(tmp_path, one="dent/7/000.png", two="dent/7/001.png")["test/dent/7.png"]
    assert masks == ("ground_truth/dent/7/000.png", "ground_truth/dent/7/001.png")
    other = np.roll(MARKED, 10, axis=0)
    save(tmp_path / masks[1], other)
    (file,) = open_dataset(str(tmp_path)).anomalies
    usable = usable_masks(tmp_path, [file], 20, "stretch")
    assert usable.files == 2 and np.array_equal(usable.masks[0], square_mask(MARKED | other, 20, "stretch"))


def test_masks_of_good_images_are_ignored(tmp_path: Path) -> None:
    assert layout(tmp_path, one="dent/7.png", two="good/0.png")["train/good/0.png"] == ()
    assert open_dataset(str(tmp_path)).notes == ()


def test_what_is_wrong_with_masks_is_named_once_a_kind(tmp_path: Path) -> None:
    files = []
    for number, mask in enumerate(
        [MARKED, np.zeros_like(MARKED), np.zeros_like(MARKED), MARKED[::2, ::2], MARKED.T, None, ~MARKED]
    ):
        grey(tmp_path / f"{number}.png")
        if mask is None:
            (tmp_path / f"{number}_m.png").write_bytes(b"damaged")
        else:
            save(tmp_path / f"{number}_m.png", mask)
        files.append(ImageFile(f"{number}.png", 1, "dent", mask=f"{number}_m.png"))
    notes = mask_notes(tmp_path, files)
    assert notes == (
        "masks of 1 of 7 anomalous image(s) are of another shape than the image and are left out, the first is 4_m.png",
        "masks of 1 of 7 anomalous image(s) are of another size than the image, the first is 3_m.png",
        "masks of 1 of 7 anomalous image(s) cannot be read and are left out, the first is 5_m.png "
        "(not an image that can be read (png, jpg, bmp, tif, webp or npy))",
        "masks of 2 of 7 anomalous image(s) mark nothing, the first is 1_m.png",
    )
    save(tmp_path / "all.png", np.ones_like(MARKED))
    whole = ImageFile("0.png", 1, "dent", mask="all.png")
    assert mask_notes(tmp_path, [whole]) == (
        "masks of 1 of 1 anomalous image(s) mark every pixel, the first is all.png",
    )
    usable = usable_masks(tmp_path, files, 16, "stretch")
    assert usable.rows == [0, 3, 6] and usable.notes == notes and usable.files == 3
    assert mask_notes(tmp_path, [ImageFile("0.png", 0, "good")]) == ()
    normal = [ImageFile(f"{row}.png", 0, "good", mask=f"{row}_m.png") for row in (0, 1)]
    (note,) = mask_notes(tmp_path, normal)
    assert note.startswith("masks of 1 of 2 normal image(s) mark something, the first is 0_m.png")


def test_a_turned_image_is_compared_as_it_is_seen(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    save(tmp_path / "m.png", MARKED.T)
    for name in ("i.jpg", "i.tif"):
        save(tmp_path / name, np.full((20, 30), 90, np.uint8), exif=turned)
        assert mask_notes(tmp_path, [ImageFile(name, 1, "dent", mask="m.png")]) == ()


def test_a_defect_that_is_lost_at_the_models_size_is_named(tmp_path: Path) -> None:
    dot = np.zeros((200, 200), bool)
    dot[1, 1] = True
    save(tmp_path / "m.png", dot)
    grey(tmp_path / "i.png", 200, 200)
    file = ImageFile("i.png", 1, "dent", mask="m.png")
    assert mask_notes(tmp_path, [file]) == ()
    usable = usable_masks(tmp_path, [file], 20, "stretch")
    assert usable.rows == [] and "mark nothing at 20 x 20 pixels, the first is m.png" in usable.notes[0]


def test_masks_beside_their_images_are_named(tmp_path: Path) -> None:
    for name in ("ok/1.png", "ok/a_mask.png", "nok/crack/2.png", "nok/crack/2_Mask.png"):
        grey(tmp_path / name)
    (note,) = open_dataset(str(tmp_path)).notes
    assert "1 image(s) are called as masks of others and are read as images, the first is nok/crack/2_Mask;" in note
