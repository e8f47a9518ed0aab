"""What the picture of all augmentations shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sctune.config import TrialConfig
from sctune.data.decode import Decoding, decode_image
from sctune.data.split import make_split
from sctune.errors import ConfigError
from sctune.train.augmentations import KINDS, augmentation_examples


def test_all_kinds_are_shown_on_the_same_images(tiny: TrialConfig) -> None:
    found, attribution = augmentation_examples(tiny, [], {}, 3)
    assert attribution is None
    assert KINDS == ("saliencycut", "cutmix", "cutmix_pair", "cutpaste")
    # DRA's CutMix is CutPaste of one patch (METHODS 3.3): one entry for both
    assert sorted(found) == ["cutmix = cutpaste normal", "cutmix_pair", "cutpaste scar", "saliencycut"]
    first, *others = found.values()
    for examples in others:
        for one, other in zip(first, examples, strict=True):
            np.testing.assert_array_equal(one.receiver, other.receiver)
    for name, examples in found.items():
        assert len(examples) == 3
        for example in examples:
            assert (example.saliency is not None) == (name == "saliencycut")
            assert (example.donor is example.receiver) == (name in ("cutmix = cutpaste normal", "cutpaste scar"))
            assert example.mask.any() and not example.mask.all()
            changed = (example.result.astype(int) != example.receiver).any(axis=-1)
            assert changed.any()
            assert not (changed & ~example.mask).any(), "only what the mask shows was changed"
            if example.donor is not example.receiver:
                np.testing.assert_array_equal(example.result[example.mask], example.donor[example.mask])


def test_only_held_out_normal_images_are_shown_whatever_the_profile_selects_by(
    tiny: TrialConfig, image_folder: Path
) -> None:
    (examples,) = augmentation_examples(tiny.override({"data.selection": "test"}), ["cutmix_pair"], {}, 4)[0].values()
    split = make_split(image_folder, "general", 4, None, tiny.seed, "auto")
    allowed = [
        decode_image(image_folder / file.path, Decoding(64, "stretch")).tobytes()
        for file in split.selection
        if file.label == 0
    ]
    for example in examples:
        assert example.receiver.tobytes() in allowed
        assert example.donor.tobytes() in allowed


def test_one_kind_with_values_of_ones_own(tiny: TrialConfig) -> None:
    small, _ = augmentation_examples(tiny, ["saliencycut"], {"augment.threshold": 0.05}, 2)
    large, _ = augmentation_examples(tiny, ["saliencycut"], {"augment.threshold": 0.9}, 2)
    assert list(small) == ["saliencycut"]
    for less, more in zip(small["saliencycut"], large["saliencycut"], strict=True):
        # a higher threshold keeps less of the receiver
        assert less.mask.sum() < more.mask.sum()
        np.testing.assert_array_equal(less.saliency, more.saliency)
    union, _ = augmentation_examples(tiny, ["cutpaste"], {"augment.cutpaste": "union"}, 2)
    assert list(union) == ["cutpaste"]


def test_images_without_any_anomaly_will_do(tiny: TrialConfig, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder, count in (("train/good", 40), ("test/good", 5)):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (70, 70, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    found, _ = augmentation_examples(tiny.override({"data.source": str(tmp_path)}), ["cutmix"], {}, 2)
    assert len(found["cutmix"]) == 2


@pytest.mark.parametrize(
    ("kinds", "values", "words"),
    [
        (["cutmx"], {}, "--kind 'cutmx' is no augmentation; did you mean 'cutmix'"),
        (["none"], {}, "--kind 'none' is no augmentation"),
        ([], {"augment.kind": "cutmix"}, "chosen with --kind"),
        ([], {"augment.treshold": 0.2}, "did you mean 'augment.threshold'"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    tiny: TrialConfig, kinds: list[str], values: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        augmentation_examples(tiny, kinds, values, 2)
